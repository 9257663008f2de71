"""Nothing runs or is kept after its deadline, and whoever set one is told in time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.engine.request import Ending, Request
from service.errors import CarouselError, DeadlineExceeded
from tests.service.engine.engines import THREADED, running_engine, standing, steps

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("either_arena")]


async def test_what_is_late_is_not_kept(sums: Path):
    now = 100.0
    async with running_engine(sums, clock=lambda: now) as engine:
        slot = engine.open()
        await engine.infer(slot, steps(1), deadline=100.5)
        with pytest.raises(DeadlineExceeded):
            await engine.infer(slot, steps(1), deadline=99.5)
        assert standing(engine, slot) == 1


async def test_what_is_late_when_its_turn_comes_does_not_run(sums: Path):
    now = 100.0
    async with running_engine(sums, clock=lambda: now) as engine:
        ended = asyncio.Event()
        request = engine.submit(engine.open(), steps(1), deadline=99.5, on_end=lambda _: ended.set())
        await ended.wait()
        assert isinstance(request.error, DeadlineExceeded)
        assert engine.num_runs == 0


async def test_a_deadline_is_kept_while_waiting_behind_a_long_job(sums: Path):
    async with running_engine(sums, max_chunk=1, seconds_a_run=THREADED) as engine:
        slot = engine.open()
        job = asyncio.create_task(engine.infer(slot, steps(*[1] * 3000)))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await engine.infer(slot, steps(1), deadline=monotonic() + 0.001)
        assert not job.done(), "it is told when its time is over, not when its turn comes"
        assert (await job).outputs[-1, 0] == 3000
        assert standing(engine, slot) == 3000


async def test_what_becomes_late_while_it_runs_is_undone(sums: Path):
    ticking = iter(np.arange(0.0, 1000.0))
    async with running_engine(sums, max_chunk=1, clock=lambda: float(next(ticking))) as engine:
        slot = engine.open()
        with pytest.raises(DeadlineExceeded):
            await engine.infer(slot, steps(*[1] * 50), deadline=20.0)
        assert standing(engine, slot) == 0


@given(
    calls=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 9), st.none() | st.integers(0, 25)), min_size=1, max_size=20
    ),
    has_store=st.booleans(),
)
@example(  # the third runs in time, and would wait for the commit of the first
    calls=[(0, 1, None), (1, 2, 3), (2, 4, None)], has_store=True
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_nothing_is_kept_after_its_deadline(sums: Path, calls: Any, has_store: bool):
    """Of three rows, each call adds one to its row's sum. A run and a commit take a second each."""
    now, kept_at, ended = 0.0, dict[Request, float](), asyncio.Event()

    async def commit(endings: list[Ending]) -> list[CarouselError | None]:
        nonlocal now
        kept_at.update((request, now) for ending in endings for request, _ in ending.answers)
        for _ in range(4):  # other rows run meanwhile
            await asyncio.sleep(0)
        now += 1
        return [None] * len(endings)

    def on_end(request: Request) -> None:
        kept_at.setdefault(request, now)
        if all(other.ended for other in requests):
            ended.set()

    async with running_engine(sums, max_chunk=4, clock=lambda: now, commit=commit if has_store else None) as engine:
        run, slots = engine._runner.run, [engine.open() for _ in range(3)]

        def run_for_a_second(inputs: Any, states: Any) -> Any:
            nonlocal now
            now += 1
            return run(inputs, states)

        engine._runner.run = run_for_a_second
        requests: list[Request] = []
        for row, length, deadline in calls:
            values = steps(*[1] + [0] * (length - 1))
            requests.append(engine.submit(slots[row], values, deadline=deadline, owner="x", on_end=on_end))
        await ended.wait()
        for (_, _, deadline), request in zip(calls, requests, strict=True):
            if request.error is None:
                assert deadline is None or kept_at[request] <= deadline
            else:
                assert isinstance(request.error, DeadlineExceeded)
                assert now > deadline
        for row, slot in enumerate(slots):
            mine = [request for (r, _, _), request in zip(calls, requests, strict=True) if r == row]
            sums_told = [float(request.result.outputs[-1, 0]) for request in mine if request.result]
            assert sums_told == list(range(1, len(sums_told) + 1))
            assert standing(engine, slot) == len(sums_told)
