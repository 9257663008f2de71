"""A minute of zeros: states fade to nothing, without passing through numbers that processors are slow with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export.convert import convert
from service.engine.engine import Engine
from tests.export.make import INFO, make_model
from tests.service import onnx_models
from tests.service.engine.engines import INLINE, THREADED, running_engine

pytestmark = pytest.mark.anyio

ROWS = 12
MINUTE = [10] * 50 + [3250]
"""3,750 steps: looked at every ten while the states fade, then all the rest."""


@pytest.fixture(scope="module", params=["lstm", "gru"])
def fading(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without biases, so that a state loses about half of itself at every silent step."""
    model = make_model(cell=request.param, scaled=False, hidden_size=64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.zero_()
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    path.write_bytes(convert(model, INFO, "fading"))
    # onnxruntime's flag reaches the thread that makes the first session of a process: here none of ours is that
    onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return path


def num_denormals(values: NDArray[np.float32]) -> int:
    """Told from the bits: a thread that takes denormals for zeros could not see them otherwise."""
    magnitude = values.view(np.uint32) & 0x7FFFFFFF
    return int(((magnitude > 0) & (magnitude < 0x00800000)).sum())


async def silence_then_signal(engine: Engine) -> list[NDArray[np.float32]]:
    """The signal's outputs, (4, O) for each row; no state on the way may hold a denormal."""
    rng = np.random.default_rng(0)
    starts = [tuple(rng.normal(size=s.row_shape).astype(np.float32) for s in engine.spec.states) for _ in range(ROWS)]
    slots = [engine.open(state) for state in starts]
    smallest = np.inf
    for steps in MINUTE:
        zeros = np.zeros((steps, 3), np.float32)
        for result in await asyncio.gather(*(engine.infer(slot, zeros, return_state=True) for slot in slots)):
            assert result.state is not None
            assert sum(map(num_denormals, (result.outputs, *result.state))) == 0
            smallest = min(smallest, *(float(np.abs(state).max()) for state in result.state))
    assert smallest == 0, "a state that never fades shows nothing"
    signal = rng.normal(size=(4, 3)).astype(np.float32)
    return [result.outputs for result in await asyncio.gather(*(engine.infer(slot, signal) for slot in slots))]


@pytest.mark.parametrize("num_threads", [1, 2])
async def test_states_fade_to_zero_without_denormals_and_a_signal_is_heard_after(fading: Path, num_threads: int):
    answers = []
    for seconds_a_run in (INLINE, THREADED):
        async with running_engine(fading, seconds_a_run=seconds_a_run, num_threads=num_threads) as engine:
            answers += await silence_then_signal(engine)
            answers.append((await engine.infer_once(np.zeros((1, 3), np.float32))).outputs)
    heard, fresh = answers[0], answers[ROWS]
    assert np.isfinite(heard).all()
    assert np.abs(heard - fresh).max() > 1e-3
    rows = [*answers[:ROWS], *answers[ROWS + 1 : -1]]
    assert all(np.array_equal(row, heard) for row in rows), "on the event loop and in the engine's thread"


async def test_the_thread_that_runs_a_model_keeps_its_denormals_outside_it(tmp_path: Path):
    async with running_engine(onnx_models.lstm(tmp_path)) as engine:
        await engine.infer_once(np.ones((3, 3), np.float32))
        assert num_denormals(np.full(1, 1e-30, np.float32) * np.float32(1e-10)) == 1
