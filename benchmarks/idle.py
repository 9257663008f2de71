"""Sequences that only wait: what they weigh, and whether beginning and expiring them holds up one that steps."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from time import perf_counter, thread_time, time

import numpy as np

from benchmarks.bench_models import SMALL
from benchmarks.child import loaded
from benchmarks.machine import resident_bytes
from service.registry import LoadedModel
from service.sequences import Sequences

TENANT = "benchmark"
TTL_SECONDS = 60.0


class Clock:
    """Leases end when it is told to jump."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time() + self.ahead


class Watch:
    """The longest that the event loop was away: in CPU time of its thread, which other processes do not lengthen."""

    def __init__(self) -> None:
        self.running = True
        self.longest_cpu = self.longest = 0.0

    async def run(self) -> None:
        while self.running:
            begin_cpu, begin = thread_time(), perf_counter()
            await asyncio.sleep(0)
            self.longest_cpu = max(self.longest_cpu, thread_time() - begin_cpu)
            self.longest = max(self.longest, perf_counter() - begin)


async def weigh(sequences: Sequences, model: LoadedModel, count: int) -> dict[str, float]:
    before, begin = resident_bytes(), perf_counter()
    for _ in range(count):
        await sequences.create(TENANT, model)
    each = (resident_bytes() - before) / count
    return {
        "bytes_each": each,
        "state_bytes": model.spec.state_bytes,
        "us_each": 1e6 * (perf_counter() - begin) / count,
    }


async def stalls(sequences: Sequences, model: LoadedModel, count: int, clock: Clock) -> dict[str, float]:
    stepping = await sequences.create(TENANT, model, ttl_seconds=86400.0)
    x = np.ones((1, *model.spec.input.step_shape), np.float32)
    going = True

    async def step() -> None:
        while going:
            await sequences.step(stepping, x)

    async def begin_all() -> None:
        for _ in range(count):
            await sequences.create(TENANT, model, ttl_seconds=TTL_SECONDS)
            await asyncio.sleep(0)  # each is a call of its own

    async def expire_all() -> None:
        clock.ahead += 2 * TTL_SECONDS
        while await sequences.expire():  # noqa: ASYNC110 - as the service's sweeper does
            await asyncio.sleep(0)

    stepper = asyncio.create_task(step())
    found: dict[str, float] = {}
    for name, work in (("create", begin_all), ("expire", expire_all)):
        watch = Watch()
        watcher = asyncio.create_task(watch.run())
        await asyncio.sleep(0)
        await work()
        watch.running = False
        await watcher
        found[f"stall_{name}"], found[f"stall_{name}_wall"] = 1000 * watch.longest_cpu, 1000 * watch.longest
    going = False
    await stepper
    return found


async def measure(repository: Path, num_idle: int, num_brief: int) -> dict[str, float]:
    """`num_idle` 0 leaves the weighing out."""
    found: dict[str, float] = {}
    async with loaded(repository, max_sequences=num_idle + num_brief + 1) as (registry, settings, metrics):
        model, clock = registry.get(SMALL), Clock()
        found |= await stalls(Sequences(registry, settings, metrics, clock), model, num_brief, clock)
        if num_idle:
            found |= await weigh(Sequences(registry, settings, metrics, clock), model, num_idle)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=Path)
    parser.add_argument("num_idle", type=int)
    parser.add_argument("num_brief", type=int)
    args = parser.parse_args()
    print(json.dumps(asyncio.run(measure(args.repository, args.num_idle, args.num_brief))))
