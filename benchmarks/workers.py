"""What workers take off the process that has the models, in CPU time a step of each, and what that comes to."""

from __future__ import annotations

import random
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bench_models import FEATURES, LARGE, SMALL, model_path, write_models
from benchmarks.figures import number
from benchmarks.load_process import LoadProcess
from benchmarks.machine import cores
from benchmarks.plan import Outcome, Plan
from benchmarks.raw import Reference
from benchmarks.servers import running_workers

WARM_SECONDS = 1.0
"""A connection is handed to a worker after some calls."""

CASES = ((SMALL, 128), (SMALL, 512), (LARGE, 128))


def compare_workers(console: Console, counts: list[int], repeats: int, seconds: float) -> dict[str, Any]:
    """All processes of the server on one core, the load on the other: CPU time tells what cores of their own would do.

    Raises SystemExit where an answer differs from the unbatched reference.
    """
    server_core, load_core = cores()
    found: dict[tuple[str, int, int], list[Outcome]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="carousel-bench-") as folder, LoadProcess(load_core) as load:
        repository = Path(folder) / "models"
        write_models(repository)
        references = {name: Reference(model_path(repository, name)) for name in (SMALL, LARGE)}
        for _ in range(repeats):
            for count in random.sample(counts, len(counts)):
                with running_workers(repository, [server_core], count) as server:
                    for model, streams in random.sample(CASES, len(CASES)):
                        plan = Plan(server.port, server.pid, model, FEATURES[model], streams, seconds, WARM_SECONDS)
                        plan.name, plan.worker_pids = f"of{streams}", tuple(server.worker_pids)
                        outcome = load.run(plan)
                        if outcome.errors or references[model].check(outcome.kept)[1]:
                            raise SystemExit(f"wrong answers with {count} workers: {outcome.first_error}")
                        found[model, streams, count].append(outcome)
    rows = [_row(model, streams, count, found) for model, streams in CASES for count in counts]
    _show(console, rows)
    return {"workers": rows}


def _row(model: str, streams: int, count: int, found: dict[tuple[str, int, int], list[Outcome]]) -> dict[str, Any]:
    outcomes = found[model, streams, count]
    engine, workers = ([getattr(one, f"{part}_cpu_us") for one in outcomes] for part in ("server", "worker"))
    busiest = max(median(engine), median(workers) / count)
    return {
        "model": model,
        "streams": streams,
        "workers": count,
        "engine_us": _spread(engine),
        "workers_us": _spread(workers),
        "one_core": _spread([one.rate for one in outcomes]),
        "ceiling": 1e6 / busiest,
    }


def _spread(values: list[float]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)


def _show(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(
        "model",
        "streams",
        "workers",
        "engine's process, us a step",
        "workers, us a step",
        "steps/s, all on one core",
        "steps/s that a core each comes to",
        title="CAROUSEL_WORKERS: median (range)",
    )
    for row in rows:
        spreads = [
            f"{number(middle)} ({number(low)}-{number(high)})"
            for middle, low, high in (row["engine_us"], row["workers_us"], row["one_core"])
        ]
        table.add_row(row["model"], str(row["streams"]), str(row["workers"]), *spreads, number(row["ceiling"]))
    console.print(table)
