"""Calls of many sequences at once: all of them, or none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from service.errors import NonFiniteResult
from service.prediction import Row, predict
from tests.service import onnx_models
from tests.service.engine.engines import running_engine, steps

pytestmark = pytest.mark.anyio
HUGE = float(np.finfo(np.float32).max)


async def test_ragged_rows_come_back_in_order(tmp_path: Path):
    async with running_engine(onnx_models.running_sum(tmp_path)) as engine:
        rows = [Row(steps(*[1] * n), (np.full((1, 1), n, np.float32),)) for n in (5, 1, 40, 3)]
        results = await predict(engine, rows, outputs="last", return_state=True)
        assert [result.outputs.tolist() for result in results] == [[[10]], [[2]], [[80]], [[6]]]
        assert [result.state[0].tolist() for result in results if result.state] == [[[10]], [[2]], [[80]], [[6]]]


async def test_one_row_that_fails_fails_the_call_with_its_index_and_keeps_no_slot(tmp_path: Path):
    async with running_engine(onnx_models.running_sum(tmp_path), num_slots=3, max_chunk=1) as engine:
        rows = [Row(steps(*[1] * 50)), Row(steps(HUGE, HUGE)), Row(steps(1))]
        for _ in range(5):
            with pytest.raises(NonFiniteResult) as failed:
                await predict(engine, rows, outputs="all", return_state=False)
            assert failed.value.fields["index"] == 1
            assert failed.value.message.startswith("sequences[1]: ")
        assert len({engine.open() for _ in range(3)}) == 3


async def test_a_caller_who_leaves_frees_every_slot(tmp_path: Path):
    async with running_engine(onnx_models.running_sum(tmp_path), num_slots=4, max_chunk=1) as engine:
        rows = [Row(steps(*[1] * 200)) for _ in range(4)]
        call = asyncio.create_task(predict(engine, rows, outputs="all", return_state=False))
        for _ in range(5):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert len({engine.open() for _ in range(4)}) == 4


async def test_the_rows_of_one_call_are_not_refused_for_each_other(tmp_path: Path):
    async with running_engine(
        onnx_models.running_sum(tmp_path), seconds_a_run=1.0, max_queue_seconds=0.5, max_queue=2
    ) as engine:
        results = await predict(engine, [Row(steps(*[1] * 100))] * 8, outputs="last", return_state=False)
        assert [result.outputs.tolist() for result in results] == [[[100]]] * 8
