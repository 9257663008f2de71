"""Rollouts on real engines: what they are fed, whom they share runs with, and what they leave behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from service.engine.engine import Engine
from service.errors import DeadlineExceeded, Draining
from service.feedback import Feedback
from service.rollout import Rolled, Step, TokenFeed, roll_out
from service.sampling import Sampler, Stops
from tests.service import onnx_models
from tests.service.engine.engines import running_engine, steps

pytestmark = pytest.mark.anyio


class Heard(list[Step]):
    async def __call__(self, step: Step) -> None:
        self.append(step)


def tokens(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


async def write(engine: Engine, seed: int, count: int, heard: Heard | None = None) -> Rolled:
    feed = TokenFeed(Sampler(seed), Stops([], "abcde"), count)
    return await roll_out(engine, tokens(seed % 5), feed, tell=Heard() if heard is None else heard)


async def test_each_token_is_drawn_from_the_output_before_it_and_the_state_has_seen_all(tmp_path: Path) -> None:
    async with running_engine(onnx_models.token_counts(tmp_path)) as engine:
        heard = Heard()
        feed = TokenFeed(Sampler(0, temperature=0), Stops([], "abcde"), 3)
        rolled = await roll_out(engine, tokens(2, 1, 2), feed, tell=heard)
        assert rolled.values.tolist() == [2, 2, 2]
        assert rolled.outputs.tolist() == [[0, 1, 2, 0, 0], [0, 1, 3, 0, 0], [0, 1, 4, 0, 0]]
        assert (rolled.position, [s.tolist() for s in rolled.state]) == (6, [[[0, 1, 5, 0, 0]]])
        assert [(step.number, step.position, int(step.value)) for step in heard] == [(1, 4, 2), (2, 5, 2), (3, 6, 2)]


async def test_a_text_is_the_same_alone_and_beside_fifty_others(tmp_path: Path) -> None:
    async with running_engine(onnx_models.token_counts(tmp_path), max_rows=64) as engine:
        alone = await write(engine, 3, 40)
        beside = await asyncio.gather(*(write(engine, seed, 40) for seed in range(51)))
        assert beside[3].values.tolist() == alone.values.tolist()
        assert beside[3].outputs.tobytes() == alone.outputs.tobytes()
        assert len({tuple(rolled.values) for rolled in beside}) > 40


async def test_rollouts_share_their_runs(tmp_path: Path) -> None:
    async with running_engine(onnx_models.token_counts(tmp_path), max_rows=64) as engine:
        await asyncio.gather(*(write(engine, seed, 20) for seed in range(50)))
        assert engine.num_runs == 1 + 20


async def test_a_forecaster_is_fed_what_it_put_out(tmp_path: Path) -> None:
    feedback = [{"kind": "output", "places": [0]}]
    async with running_engine(onnx_models.running_sum(tmp_path, feedback=feedback)) as engine:
        inputs = steps(1, 2)
        rolled = await roll_out(engine, inputs, Feedback(engine.spec, inputs[-1], 4, {}), tell=Heard())
        assert rolled.values.tolist() == [[3], [6], [12], [24]]
        assert rolled.outputs.tolist() == [[3], [6], [12], [24]]
        assert [s.tolist() for s in rolled.state] == [[[48]]]


@pytest.mark.parametrize(("asked", "shown"), [("none", []), ("last", [[24]]), ("all", [[3], [6], [12], [24]])])
async def test_outputs_are_those_asked_for(tmp_path: Path, asked: str, shown: list[list[float]]) -> None:
    feedback = [{"kind": "output", "places": [0]}]
    async with running_engine(onnx_models.running_sum(tmp_path, feedback=feedback)) as engine:
        feed = Feedback(engine.spec, steps(3)[-1], 4, {})
        rolled = await roll_out(engine, steps(3), feed, outputs=asked, tell=Heard())  # type: ignore[arg-type]
        assert rolled.outputs.tolist() == shown
        assert rolled.outputs.shape == (len(shown), 1)


@pytest.mark.parametrize("seconds_a_run", [1e-6, 1.0])
async def test_a_caller_who_leaves_frees_the_row_within_one_run(tmp_path: Path, seconds_a_run: float) -> None:
    async with running_engine(
        onnx_models.token_counts(tmp_path), num_slots=1, seconds_a_run=seconds_a_run, max_queue_seconds=1e9
    ) as engine:
        heard = Heard()
        call = asyncio.create_task(write(engine, 1, 100_000, heard))
        while len(heard) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        seen = len(heard)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert len(heard) <= seen + 1
        assert engine.num_slots_used == 0
        runs = engine.num_runs
        await engine.stop()
        assert engine.num_runs == runs


async def test_a_rollout_ends_at_its_deadline_and_gives_its_slot_back(tmp_path: Path) -> None:
    now = 100.0
    async with running_engine(onnx_models.token_counts(tmp_path), num_slots=1, clock=lambda: now) as engine:

        async def tell(step: Step) -> None:
            nonlocal now
            now += 1.0

        feed = TokenFeed(Sampler(0), Stops([], "abcde"), 50)
        with pytest.raises(DeadlineExceeded):
            await roll_out(engine, tokens(1), feed, deadline=105.5, tell=tell)
        assert now == 106.0
        assert engine.num_slots_used == 0


async def test_a_full_queue_turns_away_new_rollouts_and_lets_those_under_way_go_on(tmp_path: Path) -> None:
    async with running_engine(onnx_models.token_counts(tmp_path), max_queue=1) as engine:
        both = await asyncio.gather(write(engine, 1, 20), write(engine, 2, 20), return_exceptions=True)
        assert [type(outcome).__name__ for outcome in both] == ["Rolled", "QueueFull"]

        async def crowd(step: Step) -> None:  # another request waits whenever the rollout wants its next step
            if step.number % 2:
                others.append(engine.submit(slot, tokens(0), admitted=True))

        others, slot = [], engine.open()
        feed = TokenFeed(Sampler(0), Stops([], "abcde"), 20)
        assert len((await roll_out(engine, tokens(1), feed, tell=crowd)).values) == 20
        await asyncio.gather(*map(engine.result, others))


async def test_a_rollout_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    async with running_engine(onnx_models.token_counts(tmp_path)) as engine:
        heard = Heard()
        call = asyncio.create_task(write(engine, 1, 1_000_000, heard))
        while not heard:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await engine.stop(drain_seconds=5)
        with pytest.raises(Draining):
            await call
