"""Models whose rows touch each other: the bounds that they declare, and that one row and one step a run is exact."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import gain
from export.convert import convert
from export.quantize import describe, quantize
from export.session import Session
from service.engine.engine import Engine
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings
from tests.export.make import INFO, make_model
from tests.service.api.clients import open_client

pytestmark = pytest.mark.anyio

LENGTHS = (1, 13, 40, 7, 64, 2, 33, 100, 5)


@asynccontextmanager
async def engine_of(root: Path, data: bytes, **bounds: Any) -> AsyncIterator[tuple[Engine, list[tuple[int, int]]]]:
    """The engine as the registry makes it, and (rows, steps) of each run from now on."""
    path = root / "model" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    registry = Registry(Settings(model_repository=root, intra_op_threads=2, **bounds), Metrics())
    await registry.load()
    engine, runs = registry.get("model").engine, []
    run = engine._runner.run
    engine._runner.run = lambda inputs, states: (runs.append(inputs.shape[:2]), run(inputs, states))[1]
    try:
        yield engine, runs
    finally:
        await registry.close(0)


def int8(max_batch_size: int | None, **fields: Any) -> bytes:
    model = make_model(cell="lstm", hidden_size=64, **fields)
    return quantize(convert(model, INFO, "model", max_batch_size=max_batch_size))


def series() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 3, (length, 3)).astype(np.float32) for length in LENGTHS]


async def together(engine: Engine) -> list[np.ndarray]:
    return [result.outputs for result in await asyncio.gather(*(engine.infer_once(x) for x in series()))]


async def test_one_row_and_one_step_a_run_is_exact_whatever_runs_beside_it(tmp_path: Path):
    data = int8(1)
    offline = Session(data)
    alone = [offline.run_chunks(x[None], offline.zero_states(1), [1] * len(x))[0][0] for x in series()]
    async with engine_of(tmp_path, data) as (engine, runs):
        for y, expected in zip(await together(engine), alone, strict=True):
            assert np.array_equal(y, expected)
        assert set(runs) == {(1, 1)}
        assert len(runs) == sum(LENGTHS)


async def test_without_bounds_rows_touch_each_other(tmp_path: Path):
    """Else the test above would show nothing."""
    data = int8(None)
    offline = Session(data)
    alone = [offline.run(x[None], offline.zero_states(1))[0][0] for x in series()]
    async with engine_of(tmp_path, data) as (engine, _):
        outputs = await together(engine)
        assert not all(map(np.array_equal, outputs, alone))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("declared", "chosen", "most"), [(3, 256, 3), (64, 4, 4), (1, 256, 1)])
async def test_a_run_has_no_more_rows_than_model_and_operator_allow(
    tmp_path: Path, bidirectional: bool, declared: int, chosen: int, most: int
):
    data = convert(make_model(cell="lstm", bidirectional=bidirectional), INFO, "model", max_batch_size=declared)
    async with engine_of(tmp_path, data, max_rows=chosen) as (engine, runs):
        await asyncio.gather(*(engine.infer_once(np.zeros((5, 3), np.float32)) for _ in range(70)))
        assert max(rows for rows, _ in runs) == most


async def test_whole_sequences_alone_are_exact_also_where_they_are_longer_than_any_chunk(tmp_path: Path):
    data = int8(1, bidirectional=True)
    offline = Session(data)
    async with engine_of(tmp_path, data, max_chunk=16) as (engine, _):
        for x, y in zip(series(), await together(engine), strict=True):
            assert np.array_equal(y, offline.run(x[None], offline.zero_states(1))[0][0])


async def test_the_model_card_tells_what_int8_brought(tmp_path: Path):
    model = make_model(cell="lstm")
    fp32 = convert(model, INFO, "model", max_batch_size=1)
    quantization = gain.measure(fp32, quantize(fp32), None)
    path = tmp_path / "model" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(describe(quantize(fp32), quantization, []))
    async with open_client(tmp_path) as client:
        card = (await client.get("/v1/models/model")).json()
    assert card["quantization"] == quantization
    assert (card["batch_invariant"], card["max_batch_size"], card["max_chunk_size"]) == (False, 1, 1)
