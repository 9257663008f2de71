"""A volley is, to each of its sequences, a call like any other: its turn, its number, its answer once more."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.engine import ticker
from service.engine.request import Outputs
from service.errors import NonFiniteResult, QueueFull, SequenceGone, StepConflict
from service.replay import NUM_ANSWERS
from service.sequence import Sequence
from service.volley_calls import VolleyResult, ready
from tests.service import onnx_models
from tests.service.test_sequences import House, house

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    onnx_models.running_sum(path, "sum")
    return path


def fire(home: House, sequences: list[Sequence], inputs: Any, outputs: Outputs = "all") -> asyncio.Future[VolleyResult]:
    ended: asyncio.Future[VolleyResult] = asyncio.get_running_loop().create_future()
    home.sequences.begin_volley(tuple(sequences), np.array(inputs, np.float32), outputs, ended.set_result)
    return ended


@pytest.mark.parametrize("outputs", ["all", "last", "none"])
async def test_its_answers_are_replayed_to_calls_of_their_own(root: Path, outputs: Outputs) -> None:
    async with house(root) as home:
        both = [await home.begin("a"), await home.begin("b")]
        for at in range(0, 2 * NUM_ANSWERS + 2, 2):
            result = await fire(home, both, [[[1], [at]], [[2], [at]]], outputs)
            assert result.positions == [at + 2, at + 2]
        x = np.array([[2], [at]], np.float32)
        again = await home.sequences.step(both[1], x, step=at, outputs="last")
        assert (again.replayed, again.position) == (True, at + 2)
        assert again.outputs.tolist() == result.outputs[1].tolist()
        for wrong in (x + 1, x[:1]):
            with pytest.raises(StepConflict):
                await home.sequences.step(both[1], wrong, step=at)
        with pytest.raises(StepConflict):
            await home.sequences.step(both[1], np.array([[2], [0]], np.float32), step=0)


async def test_only_a_sequence_that_stands_there_and_is_quiet_is_ready(root: Path) -> None:
    async with house(root) as home:
        sequence, tentative = await home.begin(), await home.begin("new", tentative=True)
        assert not ready(None, 0)
        assert not ready(tentative, 0)
        assert [ready(sequence, step) for step in (None, 0, 1)] == [True, True, False]
        call = asyncio.create_task(home.add(sequence, 1))
        await asyncio.sleep(0)
        assert not ready(sequence, None)
        await call
        assert ready(sequence, 1)
        ended = fire(home, [sequence], [[[1]]])
        assert not ready(sequence, None)
        await ended
        assert ready(sequence, 2)


async def test_who_comes_meanwhile_waits_and_comes_in_order(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticker, "INLINE_SECONDS", 0.0)  # in its thread, so that others come while the volley runs
    async with house(root) as home:
        both = [await home.begin("a"), await home.begin("b")]
        ended = fire(home, both, [[[1]], [[2]]])
        calls = [asyncio.create_task(home.add(both[0], value, step=step)) for step, value in ((1, 10), (2, 5))]
        ending = asyncio.create_task(home.sequences.delete(both[1]))
        late = asyncio.create_task(home.add(both[1], 1))
        assert (await ended).outputs.ravel().tolist() == [1, 2]
        assert await asyncio.gather(*calls) == [11, 16]
        await ending
        with pytest.raises(SequenceGone):
            await late
        assert ready(both[0], 3)


async def test_a_sequence_that_fails_stays_where_it_was_and_keeps_no_answer(root: Path) -> None:
    most = 3.4e38
    async with house(root) as home:
        both = [await home.begin("a"), await home.begin("b")]
        for at, failing in ((0, [1]), (2, [1]), (4, [0, 1])):
            rows = [[[most], [most]] if place in failing else [[1], [at]] for place in range(2)]
            result = await fire(home, both, rows)
            assert [type(result.errors[place]) for place in failing] == [NonFiniteResult] * len(failing)
        assert result.positions == [4, 0]
        again = await home.sequences.step(both[0], np.array([[1], [2]], np.float32), step=2)
        assert again.replayed
        with pytest.raises(NonFiniteResult):
            await home.sequences.step(both[1], np.array([[most], [most]], np.float32), step=0)


async def test_a_volley_renews_the_lease(root: Path) -> None:
    async with house(root) as home:
        sequence = await home.begin(ttl_seconds=10)
        home.clock.now += 9
        await fire(home, [sequence], [[[1]]])
        home.clock.now += 9
        assert home.sequences.look_up(sequence.key) is sequence


async def test_a_volley_that_is_refused_has_begun_nothing(root: Path) -> None:
    async with house(root, max_queue=1) as home:
        sequence, other = await home.begin(), await home.begin("other")
        ended = fire(home, [other], [[[1]]])
        with pytest.raises(QueueFull):
            fire(home, [sequence], [[[1]]])
        assert ready(sequence, 0)
        await ended


async def test_volleys_and_calls_in_any_order_leave_the_sum_of_what_was_answered(root: Path) -> None:
    rng = random.Random(0)
    async with house(root) as home:
        everyone = [await home.begin(f"s{n}") for n in range(8)]
        sums, steps = [0.0] * 8, [0] * 8
        waiting: list[asyncio.Future[Any]] = []

        def note(places: list[int], values: list[float], ended: asyncio.Future[Any]) -> None:
            for place, value in zip(places, values, strict=True):
                sums[place], steps[place] = sums[place] + value, steps[place] + 1
            waiting.append(ended)

        for _ in range(300):
            value = float(rng.randint(1, 9))
            places = [place for place in range(8) if rng.random() < 0.6 and ready(everyone[place], steps[place])]
            if places and rng.random() < 0.7:
                note(
                    places, [value] * len(places), fire(home, [everyone[p] for p in places], [[[value]]] * len(places))
                )
            else:
                place = rng.randrange(8)
                note([place], [value], asyncio.ensure_future(home.add(everyone[place], value)))
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        for place, sequence in enumerate(everyone):
            step, state = await home.sequences.read_state(sequence)
            assert (step, float(state[0][0, 0])) == (steps[place], sums[place])
