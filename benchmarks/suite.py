"""The whole benchmark: every row in one run, contenders in shuffled order, repeat after repeat."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.bench import Bench
from benchmarks.bench_models import LARGE, SMALL, model_path, write_models
from benchmarks.child import run_child
from benchmarks.load_process import LoadProcess
from benchmarks.machine import cores, describe, load_average
from benchmarks.over_http import (
    measure_backlog,
    measure_capacity,
    measure_few_streams,
    measure_infer,
    measure_rate_held,
)
from benchmarks.over_stores import measure_stores
from benchmarks.over_streams import measure_streams
from benchmarks.raw import Reference
from benchmarks.servers import CONTENDERS, durable, running_servers
from benchmarks.sizes import Sizes

GB = 1e9
STATE_FACTOR = 1.5


def run_suite(sizes: Sizes, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything; the result as one JSON document."""
    begin, load_before = perf_counter(), load_average()
    server_core, load_core = cores()
    with tempfile.TemporaryDirectory(prefix="carousel-bench-") as folder:
        repository = Path(folder) / "models"
        write_models(repository)
        references = {name: Reference(model_path(repository, name)) for name in (SMALL, LARGE)}
        with (
            running_servers(repository, server_core, [*CONTENDERS, *durable()]) as servers,
            LoadProcess(load_core) as load,
        ):
            bench = Bench(sizes, servers, load, references, tell)
            for repeat in range(sizes.repeats):
                _measure_over_http(bench, repeat)
        for repeat in range(sizes.repeats):
            _measure_in_process(bench, repository, server_core, repeat)
        _measure_idle(bench, repository, server_core)
    return {
        "machine": describe(),
        "conditions": {
            "repeats": sizes.repeats,
            "seconds": round(perf_counter() - begin, 1),
            "server_core": server_core,
            "load_core": load_core,
            "intra_op_threads": 1,
            "load_average_before": load_before,
            "load_average_after": load_average(),
        },
        "rows": [row.to_json() for row in bench.rows.values()],
        "runs": bench.runs,
        "voids": bench.voids,
        "steps_compared": bench.steps_compared,
        "steps_wrong": bench.steps_wrong,
    }


def _measure_over_http(bench: Bench, repeat: int) -> None:
    capacity = measure_capacity(bench)
    parts: list[Callable[[], None]] = [
        lambda: measure_backlog(bench, capacity),
        lambda: measure_rate_held(bench),
        lambda: measure_streams(bench),
        lambda: measure_infer(bench),
    ]
    if repeat < bench.sizes.store_repeats:
        parts.append(lambda: measure_stores(bench))
    if repeat < bench.sizes.side_repeats:
        parts.append(lambda: measure_few_streams(bench))
    bench.order.shuffle(parts)
    for part in parts:
        part()


def _measure_in_process(bench: Bench, repository: Path, core: int, repeat: int) -> None:
    bench.tell("engine and raw session.run, in process")
    found = run_child("engine_bench", repository, bench.sizes.engine_seconds, repeat, core=core)
    for key in bench.rows.keys() & found.keys():
        bench.note(key, found[key])
    bench.runs.append({"server": "engine", **{key: round(value, 4) for key, value in found.items()}})
    if repeat < bench.sizes.side_repeats:
        bench.tell("a minute of zeros")
        bench.note("zeros", max(run_child("zeros", repository, bench.sizes.silent_steps, core=core).values()))


def _measure_idle(bench: Bench, repository: Path, core: int) -> None:
    for repeat in range(bench.sizes.side_repeats):
        num_idle = 0 if repeat else bench.sizes.num_idle
        bench.tell(f"{bench.sizes.num_brief} sequences begin and expire, {num_idle} idle ones")
        found = run_child("idle", repository, num_idle, bench.sizes.num_brief, core=core)
        bench.note("stall_create", found["stall_create"])
        bench.note("stall_expire", found["stall_expire"])
        if num_idle:
            bench.note("idle_bytes", found["bytes_each"] - STATE_FACTOR * found["state_bytes"])
            bench.note("idle_memory", 1_000_000 * found["bytes_each"] / GB)
        bench.runs.append({"server": "idle", **{key: round(value, 3) for key, value in found.items()}})
