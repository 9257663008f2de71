"""The engine without HTTP beside raw `session.run`: its own (B, T) replayed, B=1, and batches padded to the longest."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import uvloop

from benchmarks.bench_models import LARGE, SMALL, model_path
from benchmarks.child import Run, loaded, recorded_runs
from benchmarks.raw import RawSession
from service.engine.engine import Engine
from service.engine.request import Array, Request

NUM_SEQUENCES = 128
WARM_SECONDS = 0.2
PADDED_ROWS = (16, 64, 128)
"""Batch sizes that the padded baseline may pick its best of."""


class Stream:
    """Steps as soon as it has its answer, of which it is told as the server's plain calls are: without a task."""

    def __init__(self, engine: Engine, inputs: Array) -> None:
        self._engine, self._inputs = engine, inputs
        self._slot = engine.open()
        self._stepping = True
        self._ended = asyncio.get_running_loop().create_future()
        self._step()

    async def end(self) -> None:
        self._stepping = False
        await self._ended
        self._engine.close(self._slot)

    def _step(self) -> None:
        self._engine.submit(self._slot, self._inputs, on_end=self._on_end)

    def _on_end(self, request: Request) -> None:
        if request.error is not None:
            self._ended.set_exception(request.take_error())
        elif self._stepping:
            self._step()
        else:
            self._ended.set_result(None)


async def drive(engine: Engine, runs: list[Run], num_sequences: int, steps: int, seconds: float) -> tuple[Any, float]:
    """Returns the runs of `seconds` while so many sequences step, and how long it took."""
    random_numbers = np.random.default_rng(0)
    x = random_numbers.uniform(-1, 1, (num_sequences, steps, *engine.spec.input.step_shape)).astype(np.float32)
    streams = [Stream(engine, inputs) for inputs in x]
    await asyncio.sleep(WARM_SECONDS)
    first, begin = len(runs), perf_counter()
    await asyncio.sleep(seconds)
    last, elapsed = len(runs), perf_counter() - begin
    await asyncio.gather(*(stream.end() for stream in streams))
    return runs[first:last], elapsed


async def against_raw(engine: Engine, raw: RawSession, runs: list[Run], steps: int, seconds: float) -> dict[str, float]:
    """The engine's steps/s over those of raw runs of the same shapes."""
    trace, elapsed = await drive(engine, runs, NUM_SEQUENCES, steps, seconds)
    raw_seconds = raw.replay([(rows, steps) for rows, steps, _ in trace])
    num_steps = sum(rows * steps for rows, steps, _ in trace)
    return {
        "ratio": raw_seconds / elapsed,
        "steps_per_second": num_steps / elapsed,
        "mean_rows": sum(rows for rows, _, _ in trace) / len(trace),
    }


def mixed_lengths(count: int, seed: int) -> list[int]:
    """Lengths of sequences as they come: most short, some long."""
    lengths = random.Random(seed)
    return [min(400, max(1, round(lengths.lognormvariate(3.5, 0.9)))) for _ in range(count)]


async def mixed(engine: Engine, raw: RawSession, runs: list[Run], lengths: list[int]) -> dict[str, float]:
    """Whole sequences of mixed lengths: through the engine, and in padded batches."""
    x = np.zeros((max(lengths), *engine.spec.input.step_shape), np.float32)
    first, begin = len(runs), perf_counter()
    await asyncio.gather(*(engine.infer_once(x[:length], outputs="last") for length in lengths))
    elapsed = perf_counter() - begin
    executed = sum(rows * steps for rows, steps, _ in runs[first:])
    padded = min(raw.replay(padded_batches(lengths, rows)) for rows in PADDED_ROWS)
    return {"padding": sum(lengths) / executed, "over_padded": padded / elapsed}


def padded_batches(lengths: list[int], rows: int) -> list[tuple[int, int]]:
    """(B, T) of request-level batching: `rows` requests in the order of arrival, padded to the longest of them."""
    groups = [lengths[start : start + rows] for start in range(0, len(lengths), rows)]
    return [(len(group), max(group)) for group in groups]


async def measure(repository: Path, seconds: float, seed: int) -> dict[str, float]:
    """Values of the rows, by key."""
    found: dict[str, float] = {}
    async with loaded(repository, intra_op_threads=1) as (registry, _, _):
        with recorded_runs() as runs:
            for size, name, chunks, count in (("large", LARGE, (1,), 96), ("small", SMALL, (1, 32), 384)):
                engine, raw = registry.get(name).engine, RawSession(model_path(repository, name))
                for steps in chunks:
                    result = await against_raw(engine, raw, runs, steps, seconds)
                    found[f"engine_{size}_{steps}"] = result["ratio"]
                    found[f"mean_rows_{size}_{steps}"] = result["mean_rows"]
                    found[f"steps_per_second_{size}_{steps}"] = result["steps_per_second"]
                raw_one = raw.steps_per_second(1, 1, seconds / 4)
                found[f"raw_one_{size}"] = raw_one
                found[f"over_raw_one_{size}"] = found[f"steps_per_second_{size}_1"] / raw_one
                result = await mixed(engine, raw, runs, mixed_lengths(count, seed))
                found[f"over_padded_{size}"] = result["over_padded"]
                found["padding"] = min(found.get("padding", 2.0), result["padding"])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    print(json.dumps(uvloop.run(measure(args.repository, args.seconds, args.seed))))
