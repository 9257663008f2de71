"""The life of a sequence against a real engine: turns, leases, ownership, forks."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from service.engine.request import Result, State
from service.errors import (
    CarouselError,
    InvalidInput,
    NonFiniteResult,
    NoRoom,
    NotStreamable,
    SequenceExists,
    SequenceGone,
    SequenceNotFound,
    StateMoved,
    StepConflict,
)
from service.metrics import Metrics
from service.registry import LoadedModel, Registry
from service.sequence import Sequence, Steps
from service.sequences import Sequences
from service.settings import Settings
from service.stores.opening import open_store
from service.stores.store import TOMBSTONE_SECONDS, Store
from tests.service import onnx_models

pytestmark = pytest.mark.anyio


KEPT: list[dict[str, Any]] = [{}]
"""Where the state of the sequences of this test is kept."""

WAYS: dict[str, dict[str, Any]] = {
    "in the arena": {},
    "with two rows": {"max_resident_sequences": 2},
    "in a file": {"state_store": "sqlite:///{folder}/state.db"},
    "in a file, with two rows": {"state_store": "sqlite:///{folder}/state.db", "max_resident_sequences": 2},
    "in Redis": {"state_store": "redis://"},
    "in Redis, with two rows": {"state_store": "redis://", "max_resident_sequences": 2},
}


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    KEPT[0] = dict(WAYS[request.param])
    if KEPT[0].get("state_store") == "redis://":
        KEPT[0]["state_store"] = request.getfixturevalue("redis_url")
    yield
    KEPT[0] = {}


BEYOND = [3e38, 3e38]
"""Their sum is infinite."""


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class House:
    """A registry with the running-sum model `sum`, and the sequences on it."""

    def __init__(self, registry: Registry, settings: Settings, clock: Clock, metrics: Metrics, store: Store) -> None:
        self.registry, self.clock, self.metrics = registry, clock, metrics
        self.sequences = Sequences(registry, settings, metrics, clock, store)

    @property
    def model(self) -> LoadedModel:
        return self.registry.get("sum")

    async def begin(self, sequence_id: str = "s", tenant: str = "t", **fields: Any) -> Sequence:
        return await self.sequences.create(tenant, self.model, sequence_id=sequence_id, **fields)

    async def add(self, sequence: Sequence, *values: float, **fields: Any) -> float:
        """Step by `values`; the running sum after them."""
        result = await self.sequences.step(sequence, np.array(values, np.float32).reshape(-1, 1), **fields)
        return float(result.outputs[-1, 0])


@asynccontextmanager
async def house(root: Path, **overrides: Any) -> AsyncIterator[House]:
    settings, metrics = Settings(model_repository=root, max_rows=8, max_chunk=8, **KEPT[0], **overrides), Metrics()
    with TemporaryDirectory() as folder:
        registry, store = Registry(settings, metrics), open_store(settings.state_store.format(folder=folder))
        await store.open()
        await registry.load()
        try:
            yield House(registry, settings, Clock(), metrics, store)
        finally:
            await registry.close(0)
            await store.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    onnx_models.running_sum(root, "sum")
    onnx_models.lstm(root, "both-ways", bidirectional=True)
    return root


def at(value: float) -> State:
    return (np.full((1, 1), value, np.float32),)


async def test_steps_are_counted_and_checked(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        assert await h.add(sequence, 1, 2, step=0) == 3
        with pytest.raises(StepConflict) as conflict:
            await h.add(sequence, 4, step=1)
        assert conflict.value.fields["expected_step"] == 2
        assert await h.add(sequence, 4, step=2) == 7
        assert await h.add(sequence, 5) == 12, "without a step there is no check"
        assert sequence.step == 4


async def test_a_repeated_call_gets_its_answer_again_and_moves_nothing(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        x = np.array([[1], [2]], np.float32)
        first = await h.sequences.step(sequence, x, step=0, return_state=True)
        await h.add(sequence, 10, step=2)
        again = await h.sequences.step(sequence, x, step=0, return_state=True)
        assert again.replayed
        assert not first.replayed
        assert (again.steps, again.position) == (first.steps, first.position) == (2, 2)
        assert np.array_equal(again.outputs, first.outputs)
        assert again.state is not None
        assert again.state[0].tolist() == [[3]]
        assert await h.add(sequence, 1, step=3) == 14


async def test_a_repeat_that_overtakes_the_answer_waits_for_it(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        assert await asyncio.gather(*(h.add(sequence, 1, step=0) for _ in range(20))) == [1] * 20
        assert sequence.step == 1


async def test_sixteen_answers_are_kept_and_other_inputs_are_no_repeat(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        for n in range(20):
            await h.add(sequence, n, step=n)
        assert await h.add(sequence, 4, step=4) == sum(range(5))
        for step, value in ((3, 3), (10, 11)):
            with pytest.raises(StepConflict):
                await h.add(sequence, value, step=step)


async def test_a_trial_and_an_overwritten_past_are_not_replayed(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        await h.add(sequence, 7, step=0, commit=False)
        assert await h.add(sequence, 1, step=0) == 1
        await h.sequences.overwrite(sequence, at(100), 5)
        with pytest.raises(StepConflict):
            await h.add(sequence, 1, step=0)
        fork = await h.sequences.fork(sequence, "fork")
        with pytest.raises(StepConflict):
            await h.add(fork, 1, step=0)


async def test_a_repeat_that_waited_behind_the_call_it_repeats_gets_its_answer(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        long = asyncio.create_task(h.add(sequence, *[1] * 500, step=0))
        await asyncio.sleep(0)
        look = asyncio.create_task(h.sequences.read_state(sequence))
        await asyncio.sleep(0)
        same = [asyncio.create_task(h.add(sequence, 1, step=500)) for _ in range(3)]
        assert await asyncio.gather(long, *same) == [500, 501, 501, 501]
        assert (await look)[0] == 500
        assert sequence.step == 501


@pytest.mark.parametrize("length", [1, 300])
@pytest.mark.parametrize(("outputs", "shown"), [("all", None), ("last", 1), ("none", 0)])
async def test_small_and_large_answers_are_replayed_to_the_bit_and_take_little_room(
    root: Path, length: int, outputs: Any, shown: int | None
):
    async with house(root) as h:
        sequence = await h.begin(state=at(0.1))
        x = np.random.default_rng(0).normal(size=(length, 1)).astype(np.float32)
        ask: Any = {"step": 0, "outputs": outputs, "return_state": True}
        first = await h.sequences.step(sequence, x, **ask)
        await h.add(sequence, 10)
        again = await h.sequences.step(sequence, x, **ask)
        assert again.replayed
        assert (again.position, again.steps) == (first.position, first.steps)
        assert len(again.outputs) == (length if shown is None else shown)
        assert np.array_equal(again.outputs, first.outputs)
        assert again.state is not None
        assert first.state is not None
        assert np.array_equal(again.state[0], first.state[0])
        assert sequence.step == length + 1
        assert sequence.replays is not None
        assert max(map(len, sequence.replays.packed)) <= 1100


async def test_a_sequence_that_no_call_could_begin_never_was(root: Path):
    async with house(root, max_sequences=1) as h:
        huge = float(np.finfo(np.float32).max)
        for _ in range(3):
            sequence = await h.sequences.create("t", h.model, sequence_id="s", tentative=True)
            calls = [h.add(sequence, huge, huge, step=0) for _ in range(3)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(outcome, NonFiniteResult) for outcome in outcomes)
            with pytest.raises(SequenceNotFound):
                await h.sequences.find("t", "sum", "s")
        begun = await h.sequences.create("t", h.model, sequence_id="s", tentative=True)
        outcomes = await asyncio.gather(h.add(begun, huge, huge), h.add(begun, 1), return_exceptions=True)
        assert outcomes[1] == 1
        assert (await h.sequences.find("t", "sum", "s")).step == 1
        assert 'sequences_created_total{model="sum"} 1.0' in h.metrics.render().decode()


async def test_one_that_ended_lets_go_of_what_it_held(root: Path):
    async with house(root) as h:
        sequence = await h.begin(ttl_seconds=86400)
        await h.add(sequence, 1)
        weak = weakref.ref(sequence)
        await h.sequences.delete(sequence)
        del sequence
        assert weak() is None


async def test_calls_to_one_sequence_run_in_the_order_of_arrival(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        seen = await asyncio.gather(*(h.add(sequence, 10.0**n) for n in range(6)))
        assert seen == [1, 11, 111, 1111, 11111, 111111]


async def test_of_two_calls_that_name_the_same_step_one_wins(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        outcomes = await asyncio.gather(*(h.add(sequence, n, step=0) for n in range(1, 6)), return_exceptions=True)
        assert outcomes[0] == 1
        assert all(isinstance(outcome, StepConflict) for outcome in outcomes[1:])
        assert sequence.step == 1


async def test_calls_can_be_sent_ahead_with_their_steps(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        assert await asyncio.gather(*(h.add(sequence, 1, step=n) for n in range(6))) == [1, 2, 3, 4, 5, 6]


async def test_when_one_sent_ahead_fails_those_that_counted_on_it_are_told_where_it_stands(root: Path):
    async with house(root) as h:
        sequence, huge = await h.begin(), float(np.finfo(np.float32).max)
        outcomes = await asyncio.gather(
            h.add(sequence, 1, step=0),
            h.add(sequence, huge, huge, step=1),
            h.add(sequence, 1, step=3),
            h.add(sequence, 1),
            h.add(sequence, 1, step=5),
            h.add(sequence, 1, 0, step=2),
            return_exceptions=True,
        )
        assert outcomes[0] == 1
        assert isinstance(outcomes[1], NonFiniteResult)
        assert isinstance(outcomes[2], StepConflict)
        assert outcomes[2].fields["expected_step"] == 4, "where it stands when its turn comes"
        assert outcomes[3] == 2, "a call without a step goes on from wherever the sequence stands"
        assert isinstance(outcomes[4], StepConflict)
        assert outcomes[5] == 3, "a call that named the right step after all is served"


async def test_calls_sent_ahead_behind_one_that_is_alone_run_in_order(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        async with h.sequences._visits.turn(sequence):
            calls = [asyncio.create_task(h.add(sequence, 10**n, step=n)) for n in range(5)]
            for _ in range(10):
                await asyncio.sleep(0)
        assert await asyncio.gather(*calls) == [1, 11, 111, 1111, 11111]


async def test_a_failed_step_is_no_step(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        await h.add(sequence, 5)
        huge = float(np.finfo(np.float32).max)
        with pytest.raises(NonFiniteResult):
            await h.add(sequence, huge, huge)
        assert sequence.step == 1
        assert await h.add(sequence, 1, step=1) == 6


async def test_a_trial_moves_neither_state_nor_step(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        await h.add(sequence, 5)
        result = await h.sequences.step(sequence, np.ones((3, 1), np.float32), commit=False)
        assert (float(result.outputs[-1, 0]), result.position, sequence.step) == (8, 4, 1)
        assert await h.add(sequence, 1) == 6


async def test_a_caller_who_leaves_moves_nothing_and_frees_the_turn(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        call = asyncio.create_task(h.add(sequence, *[1] * 500))
        for _ in range(4):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await h.add(sequence, 1, step=0) == 1


async def test_a_fork_goes_its_own_way(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        await h.add(sequence, 5)
        copy = await h.sequences.fork(sequence, "copy")
        assert copy.step == 1
        assert await h.add(copy, 10) == 15
        assert await h.add(sequence, 1) == 6


async def test_a_state_can_be_put_back_if_nobody_moved_it(root: Path):
    async with house(root) as h:
        sequence = await h.begin(state=at(100), step=7)
        step, state = await h.sequences.read_state(sequence)
        assert (step, state[0].tolist()) == (7, [[100]])
        with pytest.raises(StateMoved):
            await h.sequences.overwrite(sequence, at(0), 0, if_match=6)
        await h.sequences.overwrite(sequence, at(1), 70, if_match=7)
        assert await h.add(sequence, 1, step=70) == 2


async def test_an_id_is_taken_while_it_lives(root: Path):
    async with house(root) as h:
        first = await h.begin()
        with pytest.raises(SequenceExists):
            await h.begin()
        await h.sequences.delete(first)
        assert await h.add(await h.begin(), 1) == 1, "the next one begins from zeros"


async def test_ids_are_made_up_where_none_is_given(root: Path):
    async with house(root) as h:
        ids = {(await h.begin(None)).id for _ in range(50)}
        assert len(ids) == 50


async def test_the_dead_say_why_for_an_hour_and_then_never_were(root: Path):
    async with house(root) as h:
        await h.sequences.delete(await h.begin("deleted"))
        await h.begin("expired", ttl_seconds=10)
        h.clock.now += 11
        assert not await h.sequences.expire()
        for sequence_id in ("deleted", "expired"):
            with pytest.raises(SequenceGone) as gone:
                await h.sequences.find("t", "sum", sequence_id)
            assert gone.value.fields["reason"] == sequence_id
        h.clock.now += TOMBSTONE_SECONDS + 1
        await h.sequences.expire()
        for sequence_id in ("deleted", "expired", "never"):
            with pytest.raises(SequenceNotFound):
                await h.sequences.find("t", "sum", sequence_id)


async def test_each_call_renews_the_lease(root: Path):
    async with house(root) as h:
        sequence = await h.begin(ttl_seconds=10)
        for _ in range(5):
            h.clock.now += 9
            await h.sequences.expire()
            await h.add(sequence, 1)
        assert sequence.expires_at == h.clock.now + 10
        h.clock.now += 10
        with pytest.raises(SequenceGone):
            await h.sequences.find("t", "sum", "s")


async def test_what_was_told_of_a_lease_is_kept(root: Path):
    async with house(root) as h:
        sequence = await h.begin(ttl_seconds=10)
        await h.add(sequence, 1, step=0)
        h.clock.now += 6
        with pytest.raises(StepConflict):
            await h.add(sequence, 1, step=7)
        assert (await h.add(sequence, 1, step=0)) == 1, "the answer of before"
        assert sequence.expires_at == h.clock.now + 10
        h.clock.now += 6
        with pytest.raises(NonFiniteResult):
            await h.add(sequence, *BEYOND)
        h.clock.now = sequence.expires_at - 1
        while await h.sequences.expire():
            pass
        assert await h.add(sequence, 1) == 2


async def test_a_sequence_may_begin_with_steps_that_are_only_tried(root: Path):
    async with house(root) as h:
        sequence = await h.begin(tentative=True)
        tried, counted = await asyncio.gather(h.add(sequence, 5, commit=False), h.add(sequence, 1))
        assert (tried, counted) == (5, 1)
        other = await h.begin("other", tentative=True)
        assert await h.add(other, 5, commit=False) == 5
        h.sequences.discard(other)
        assert await h.add(await h.sequences.find("t", "sum", "other"), 1) == 1


async def test_room_is_not_made_by_a_sequence_that_is_just_beginning(root: Path):
    async with house(root) as h:
        sequence = await h.begin(tentative=True)
        for name in ("a", "b", "c"):
            await h.begin(name)
        assert await h.add(sequence, 1) == 1


async def test_a_call_behind_one_that_failed_is_told_where_the_sequence_stands(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        ends: asyncio.Queue[Result | CarouselError] = asyncio.Queue()
        for step, values in ((0, BEYOND), (2, [1.0])):
            inputs = np.array(values, np.float32).reshape(-1, 1)
            assert h.sequences.begin(sequence, Steps(inputs, step, "all", False, True, None), ends.put_nowait)
        first, second = await ends.get(), await ends.get()
        assert isinstance(first, NonFiniteResult)
        assert isinstance(second, StepConflict)
        assert second.fields["expected_step"] == 0


async def test_a_call_that_waited_its_turn_while_the_sequence_ended_is_told(root: Path):
    async with house(root) as h:
        sequence = await h.begin()
        _, late = await asyncio.gather(h.sequences.delete(sequence), h.add(sequence, 1), return_exceptions=True)
        assert isinstance(late, SequenceGone)
        assert late.fields["reason"] == "deleted"


async def test_other_tenants_sequences_never_were(root: Path):
    async with house(root) as h:
        await h.begin("mine", tenant="a")
        await h.sequences.delete(await h.begin("gone", tenant="a"))
        messages = set()
        for sequence_id in ("mine", "gone", "unknown"):
            with pytest.raises(SequenceNotFound) as absent:
                await h.sequences.find("b", "sum", sequence_id)
            messages.add((absent.value.message, str(absent.value.fields)))
        assert len(messages) == 1
        assert await h.sequences.list("b", "sum") == []
        assert (await h.begin("mine", tenant="b")).step == 0


async def test_listing_goes_on_after_an_id(root: Path):
    async with house(root) as h:
        for n in (3, 1, 2, 0):
            await h.begin(f"s{n}")
        first = await h.sequences.list("t", "sum", most=3)
        rest = await h.sequences.list("t", "sum", after=first[-1].id, most=3)
        assert [s.id for s in first + rest] == ["s0", "s1", "s2", "s3"]


async def test_room_is_bounded_and_comes_back(root: Path):
    async with house(root, max_sequences=2) as h:
        first, _ = await h.begin("a"), await h.begin("b")
        with pytest.raises(NoRoom):
            await h.begin("c")
        await h.sequences.delete(first)
        assert await h.add(await h.begin("c", tentative=True), 1) == 1
        with pytest.raises(NoRoom):
            await h.begin("d", tentative=True)


async def test_a_thousand_expire_in_portions_and_give_their_room_back(root: Path):
    async with house(root, max_sequences=1000) as h:
        for n in range(1000):
            await h.begin(f"s{n}", ttl_seconds=1 + n % 5)
        h.clock.now += 10
        assert await h.sequences.expire(most=400), "more to do"
        while await h.sequences.expire(most=400):
            pass
        assert await h.sequences.list("t", "sum") == []
        for n in range(1000):
            await h.begin(f"again{n}")
        await h.sequences.count()
        page = h.metrics.render().decode()
        assert 'carousel_sequences_ended_total{model="sum",reason="expired"} 1000.0' in page
        told = h.metrics.sequences_of("sum")
        assert (told["active"], told["created"], told["state_bytes"]) == (1000, 2000, 4000)


async def test_a_model_that_needs_whole_sequences_is_not_stepped(root: Path):
    async with house(root) as h:
        with pytest.raises(NotStreamable, match="predict"):
            await h.sequences.create("t", h.registry.get("both-ways"))


@pytest.mark.parametrize("ttl_seconds", [0, -1, 1e12, float("nan")])
async def test_a_lease_has_bounds(root: Path, ttl_seconds: float):
    async with house(root) as h:
        with pytest.raises(InvalidInput, match="ttl_seconds"):
            await h.begin(ttl_seconds=ttl_seconds)
