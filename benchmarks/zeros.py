"""A minute of zeros, then signal: states decay to where numbers are denormal, and arithmetic on those can be slow.

Both ways in which the engine runs a model are measured: few rows on the event loop, many on its thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.bench_models import DECAYING
from benchmarks.child import Run, loaded, recorded_runs
from service.engine.engine import Engine

CHUNK = 25
SIGNAL_CALLS = 20
FEW, MANY = 8, 256


async def slowdown(engine: Engine, runs: list[Run], num_rows: int, silent_steps: int) -> float:
    """Median run time of the last fifth of the silence, or of the signal after it, over that of the signal before."""
    slots = [engine.open() for _ in range(num_rows)]
    shape = (num_rows, CHUNK, *engine.spec.input.step_shape)
    signal = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)

    async def call(x: np.ndarray) -> float:
        first = len(runs)
        await asyncio.gather(*(engine.infer(slot, x[row], outputs="none") for row, slot in enumerate(slots)))
        return sum(seconds for _, _, seconds in runs[first:])

    before = [await call(signal) for _ in range(SIGNAL_CALLS)]
    silent = [await call(np.zeros_like(signal)) for _ in range(silent_steps // CHUNK)]
    after = [await call(signal) for _ in range(SIGNAL_CALLS)]
    for slot in slots:
        engine.close(slot)
    return max(median(silent[-len(silent) // 5 :]), median(after)) / median(before)


async def measure(repository: Path, silent_steps: int) -> dict[str, float]:
    async with loaded(repository) as (registry, _, _):
        engine = registry.get(DECAYING).engine
        with recorded_runs() as runs:
            return {f"rows_{rows}": await slowdown(engine, runs, rows, silent_steps) for rows in (FEW, MANY)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=Path)
    parser.add_argument("silent_steps", type=int)
    args = parser.parse_args()
    print(json.dumps(asyncio.run(measure(args.repository, args.silent_steps))))
