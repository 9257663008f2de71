"""A volley moves many rows at once, each just as if it had been asked alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.engine.engine import Engine
from service.engine.volleys import Volley
from service.errors import Draining, EngineFailure, NonFiniteResult, QueueFull
from tests.service.engine.engines import INLINE, THREADED, running_engine

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("either_arena")]


def fire(engine: Engine, slots: list[int], inputs: Any, tenant: str = "") -> asyncio.Future[Volley]:
    ended: asyncio.Future[Volley] = asyncio.get_running_loop().create_future()
    engine.submit_volley(np.array(slots), np.array(inputs, np.float32), ended.set_result, tenant)
    return ended


def standing(engine: Engine, slots: list[int]) -> list[tuple[float, int]]:
    return [(float(engine.read(slot)[0][0, 0]), engine.position(slot)) for slot in slots]


@pytest.mark.parametrize("seconds_a_run", [INLINE, THREADED], ids=["inline", "threaded"])
async def test_rows_of_a_volley_equal_calls_of_their_own(lstm: Path, seconds_a_run: float) -> None:
    rows, cuts = 7, (13, 1, 2)
    x = np.random.default_rng(0).normal(size=(rows, sum(cuts), 3)).astype(np.float32)
    async with running_engine(lstm, seconds_a_run=seconds_a_run, max_chunk=8) as engine:
        slots, own = [engine.open() for _ in range(rows)], [engine.open() for _ in range(rows)]
        at = 0
        for steps in cuts:
            part = x[:, at : at + steps]
            at += steps
            volley = await fire(engine, slots, part)
            results = await asyncio.gather(*(engine.infer(slot, part[n]) for n, slot in enumerate(own)))
            assert volley.outputs is not None
            assert volley.outputs.tolist() == [result.outputs.tolist() for result in results]
            assert not volley.errors
        for slot, other in zip(slots, own, strict=True):
            assert engine.position(slot) == engine.position(other) == sum(cuts)
            assert all(map(np.array_equal, engine.read(slot), engine.read(other)))


async def test_a_row_that_goes_wrong_stays_alone_where_it_was(sums: Path) -> None:
    async with running_engine(sums) as engine:
        slots = [engine.open() for _ in range(3)]
        await fire(engine, slots, [[[1]], [[3e38]], [[2]]])
        volley = await fire(engine, slots, [[[1], [1]], [[3e38], [0]], [[2], [2]]])
        assert [type(error) for error in volley.errors.values()] == [NonFiniteResult]
        assert list(volley.errors) == [1]
        assert standing(engine, slots) == [(3, 3), (float(np.float32(3e38)), 1), (6, 3)]
        assert (engine.metrics.succeeded.count, engine.metrics.failed.count) == (5, 1)


async def test_a_fault_leaves_every_row_as_it_was(sums: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_engine(sums) as engine:
        slots = [engine.open(), engine.open()]
        await fire(engine, slots, [[[1]], [[2]]])

        def no_memory(*_: Any) -> None:
            raise MemoryError

        for broken in ("run", "advance"):
            with monkeypatch.context() as patch:
                patch.setattr(engine._runner if broken == "run" else engine._rows, broken, no_memory)
                volley = await fire(engine, slots, [[[1]], [[2]]])
            assert [type(volley.errors[row]) for row in range(2)] == [EngineFailure] * 2
            assert standing(engine, slots) == [(1, 1), (2, 1)]


async def test_volleys_and_calls_take_turns_and_are_counted_against_the_queue(sums: Path) -> None:
    async with running_engine(sums, max_queue=6, max_chunk=1, seconds_a_run=THREADED) as engine:
        slots, other = [engine.open() for _ in range(3)], engine.open()
        call = engine.submit(other, np.ones((40, 1), np.float32))
        ended = [fire(engine, slots[:2], [[[1]] * 3] * 2), fire(engine, slots[2:], [[[1]]])]
        more = [fire(engine, [engine.open()], [[[1]]]) for _ in range(3)]
        with pytest.raises(QueueFull):
            fire(engine, [engine.open()], [[[1]]])
        await asyncio.gather(*ended, *more)
        assert not call.ended, "it has forty runs to make, and five volleys took their turns between them"
        assert standing(engine, slots) == [(3, 3), (3, 3), (1, 1)]
        assert (await engine.result(call)).outputs[-1, 0] == 40


async def test_tenants_take_turns_with_their_volleys(sums: Path) -> None:
    async with running_engine(sums) as engine:
        order: list[str] = []
        ended = []
        for tenant in "aaaaabbc":
            ended.append(fire(engine, [engine.open()], [[[1]]], tenant))
            ended[-1].add_done_callback(lambda _, tenant=tenant: order.append(tenant))
        await asyncio.gather(*ended)
        assert "".join(order) == "abcabaaa"


async def test_volleys_that_wait_together_run_together_and_none_harms_another(sums: Path) -> None:
    async with running_engine(sums, max_rows=4) as engine:
        slots = [[engine.open() for _ in range(count)] for count in (2, 1, 1, 2, 1)]
        runs = engine.num_runs
        inputs: list[Any] = [[[[1]], [[2]]], [[[np.nan]]], [[[4], [5]]], [[[6]], [[7]]], [[[8]]]]
        volleys = await asyncio.gather(
            *(fire(engine, own, x, f"tenant {n % 2}") for n, (own, x) in enumerate(zip(slots, inputs, strict=True)))
        )
        assert engine.num_runs - runs == 3, "four rows of one step, two of two, and the rest"
        assert [list(volley.errors) for volley in volleys] == [[], [0], [], [], []]
        assert [standing(engine, own) for own in slots] == [
            [(1, 1), (2, 1)],
            [(0, 0)],
            [(9, 2)],
            [(6, 1), (7, 1)],
            [(8, 1)],
        ]
        assert [volley.outputs.ravel().tolist() for volley in volleys if not volley.errors] == [
            [1, 2],
            [4, 9],
            [6, 7],
            [8],
        ]


async def test_volleys_of_too_many_seconds_are_refused_and_keep_calls_out_until_they_are_done(sums: Path) -> None:
    async with running_engine(sums, seconds_a_run=1.0, max_queue_seconds=3.0) as engine:
        slots = [engine.open() for _ in range(3)]
        ended = [fire(engine, [slot], [[[1]]]) for slot in slots]
        with pytest.raises(QueueFull) as refused:
            fire(engine, [engine.open()], [[[1]]])
        assert refused.value.fields["retry_after"] == 3
        with pytest.raises(QueueFull):
            engine.submit(engine.open(), np.ones((1, 1), np.float32))
        await asyncio.gather(*ended)
        assert (await engine.infer(slots[0], np.ones((1, 1), np.float32))).outputs.item() == 2


async def test_stopping_finishes_volleys_or_undoes_them(sums: Path) -> None:
    async with running_engine(sums, max_chunk=1, seconds_a_run=THREADED) as engine:
        slots = [engine.open()]
        ended = fire(engine, slots, [[[1]] * 5])
        await engine.stop(drain_seconds=30)
        assert standing(engine, slots) == [(5, 5)]
        assert not (await ended).errors
        with pytest.raises(Draining):
            fire(engine, slots, [[[1]]])
    async with running_engine(sums, max_chunk=1, seconds_a_run=THREADED) as engine:
        slots = [engine.open(), engine.open()]
        fire(engine, slots[:1], [[[1]] * 5])
        late = fire(engine, slots[1:], [[[1]] * 4])
        await engine.stop(drain_seconds=0)
        assert [type(error) for error in (await late).errors.values()] == [Draining]
        assert standing(engine, slots[1:]) == [(0, 0)]
