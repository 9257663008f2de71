"""Fair turns: steps side by side, everything else alone, in the order of arrival."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.turns import Turns

pytestmark = pytest.mark.anyio


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3)), max_size=8),
)
@settings(deadline=None)
async def test_order_and_exclusion_hold_whoever_gives_up(visitors: Any, cancels: Any):
    turns, inside, entered = Turns(), [], []

    async def visit(number: int, alone: bool, stay: int) -> None:
        await turns.enter(alone=alone)
        entered.append(number)
        inside.append(alone)
        try:
            assert len(inside) == 1 or not any(inside), "alone means alone"
            for _ in range(stay):
                await asyncio.sleep(0)
        finally:
            inside.remove(alone)
            turns.leave()

    async def cancel() -> None:
        for number, ticks in cancels:
            for _ in range(ticks):
                await asyncio.sleep(0)
            if number < len(tasks):
                tasks[number].cancel()

    tasks: list[asyncio.Task[None]] = []
    canceller = asyncio.create_task(cancel())
    for number, (alone, stay, pause) in enumerate(visitors):
        tasks.append(asyncio.create_task(visit(number, alone, stay)))
        for _ in range(pause):
            await asyncio.sleep(0)
    await canceller
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert entered == sorted(entered), "in the order of arrival"
    assert all(task.cancelled() or task.exception() is None for task in tasks)
    assert not turns.busy


async def test_whoever_comes_while_another_is_let_in_does_not_overtake():
    turns, entered = Turns(), []

    async def visit(name: str) -> None:
        await turns.enter(alone=False)
        entered.append(name)

    await turns.enter(alone=True)
    first = asyncio.create_task(visit("first"))
    await asyncio.sleep(0)
    second = asyncio.create_task(visit("second"))
    turns.leave()
    await asyncio.gather(first, second)
    assert entered == ["first", "second"]


async def test_steps_go_in_together_and_wait_behind_one_that_wants_to_be_alone():
    turns = Turns()
    await turns.enter(alone=False)
    await turns.enter(alone=False)
    loner = asyncio.create_task(turns.enter(alone=True))
    await asyncio.sleep(0)
    late = asyncio.create_task(turns.enter(alone=False))
    await asyncio.sleep(0)
    turns.leave()
    turns.leave()
    await loner
    assert not late.done(), "it came after the one who waits"
    turns.leave()
    await late
