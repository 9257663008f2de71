"""Ends that have an owner are kept only once they are committed, all of a moment in one commit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from service.engine.request import Ending
from service.errors import CarouselError, Unavailable
from tests.service.engine.engines import running_engine, steps

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("either_arena")]


class Ledger:
    """Commits when it is let; `away` fails it."""

    def __init__(self) -> None:
        self.commits: list[list[Ending]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.refused: set[object] = set()
        self.away = False

    async def __call__(self, endings: list[Ending]) -> list[CarouselError | None]:
        await self.open.wait()
        if self.away:
            raise Unavailable("away")
        self.commits.append(endings)
        return [Unavailable("refused") if ending.request.owner in self.refused else None for ending in endings]


async def test_an_end_carries_state_and_position_and_is_answered_after_its_commit(sums: Path):
    ledger = Ledger()
    async with running_engine(sums, commit=ledger) as engine:
        slot = engine.open()
        ledger.open.clear()
        request = engine.submit(slot, steps(1, 2, 3), owner="a")
        ended = asyncio.create_task(engine.result(request))
        await asyncio.wait([ended], timeout=0.05)
        assert not ended.done(), "an answer before its commit could be lost"
        assert engine.position(slot) == 0
        ledger.open.set()
        assert (await ended).outputs.ravel().tolist() == [1, 3, 6]
        (ending,) = ledger.commits[0]
        assert (np.frombuffer(ending.state, np.float32).tolist(), ending.position) == ([6], 3)
        assert (engine.read(slot)[0].item(), engine.position(slot)) == (6, 3)


async def test_what_is_not_committed_leaves_the_row_as_it_was(sums: Path):
    ledger = Ledger()
    async with running_engine(sums, commit=ledger) as engine:
        good, bad = engine.open(), engine.open()
        ledger.refused = {"bad"}
        calls = [engine.submit(good, steps(1), owner="good"), engine.submit(bad, steps(1), owner="bad")]
        outcomes = await asyncio.gather(*map(engine.result, calls), return_exceptions=True)
        assert [type(outcome).__name__ for outcome in outcomes] == ["Result", "Unavailable"]
        ledger.refused, ledger.away = set(), True
        with pytest.raises(Unavailable):
            await engine.result(engine.submit(good, steps(5), owner="good"))
        ledger.away = False
        for slot, total in ((good, 11.0), (bad, 10.0)):
            result = await engine.result(engine.submit(slot, steps(10), owner="x"))
            assert result.outputs.item() == total
            assert engine.position(slot) == int(total > 10) + 1


async def test_runs_go_on_beside_a_commit_and_end_in_the_next_one_together(sums: Path):
    ledger = Ledger()
    async with running_engine(sums, commit=ledger) as engine:
        slots = [engine.open() for _ in range(9)]
        ledger.open.clear()
        calls = []
        for n, slot in enumerate(slots):
            calls.append(engine.submit(slot, steps(n), owner=n))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        ahead = engine.submit(slots[0], steps(100), owner=0)  # waits for the commit before it
        alone = engine.submit(slots[0], steps(1000), commit=False)
        ledger.open.set()
        results = [await engine.result(call) for call in (*calls, ahead, alone)]
        assert [result.outputs.item() for result in results] == [*range(9), 100, 1100]
        assert len(ledger.commits) < 5
        assert sum(map(len, ledger.commits)) == 10, "what only tries is not committed"


async def test_calls_that_ran_as_one_are_committed_as_one(sums: Path):
    ledger = Ledger()
    async with running_engine(sums, commit=ledger) as engine:
        slot = engine.open()
        calls = [engine.submit(slot, steps(n), owner="s") for n in range(1, 6)]
        results = [await engine.result(call) for call in calls]
        assert [result.position for result in results] == [1, 2, 3, 4, 5]
        assert [len(ending.answers) for commit in ledger.commits for ending in commit] == [1, 4]


async def test_a_caller_who_leaves_while_the_commit_is_under_way_gets_what_was_kept(sums: Path):
    ledger = Ledger()
    async with running_engine(sums, commit=ledger) as engine:
        slot = engine.open()
        ledger.open.clear()
        ended = asyncio.create_task(engine.result(engine.submit(slot, steps(4), owner="s")))
        await asyncio.wait([ended], timeout=0.05)
        ended.cancel()
        await asyncio.sleep(0)
        ledger.open.set()
        assert (await ended).outputs.item() == 4
        assert engine.position(slot) == 1
