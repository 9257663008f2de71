"""Engines for tests: real models on real onnxruntime, with bounds small enough to meet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import numpy as np

from service.engine.cost_model import CostModel
from service.engine.engine import Engine
from service.engine.model_runner import ModelRunner
from service.engine.request import Commit
from service.metrics import EngineMetrics, Metrics

INLINE, THREADED = 1e-6, 1e-3
"""Seconds of a run that the engine does itself, and of one that its thread does."""

OPEN_RUNNER: list[Callable[..., ModelRunner]] = [ModelRunner]
"""The last one opens a model where a test does not say."""


@asynccontextmanager
async def running_engine(
    path: Path,
    *,
    num_slots: int = 64,
    max_queue: int = 256,
    max_queue_seconds: float = 60.0,
    max_rows: int = 16,
    max_chunk: int = 16,
    seconds_a_run: float = INLINE,
    num_threads: int = 1,
    clock: Callable[[], float] = monotonic,
    commit: Commit | None = None,
    open_runner: Callable[..., ModelRunner] | None = None,
) -> AsyncIterator[Engine]:
    """`seconds_a_run` is what the cost model is told: tiny ones run on the event loop, large ones in the thread."""
    runner = (open_runner or OPEN_RUNNER[-1])(path, num_threads=num_threads)
    cost_model = CostModel(max_rows, max_chunk)
    cost_model.calibrate(lambda rows, steps: seconds_a_run)
    metrics = EngineMetrics(Metrics(), "model", 1)
    engine = Engine(
        runner,
        cost_model,
        metrics,
        num_slots=num_slots,
        max_queue=max_queue,
        max_queue_seconds=max_queue_seconds,
        clock=clock,
        commit=commit,
    )
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def steps(*values: float) -> np.ndarray:
    """Inputs of a one-feature model: (T, 1) float32."""
    return np.array(values, np.float32).reshape(-1, 1)


def standing(engine: Engine, slot: int) -> float:
    """The running sum that a slot holds."""
    return float(engine.read(slot)[0][0, 0])
