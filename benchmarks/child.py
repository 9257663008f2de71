"""Measurements inside a process of their own: a fresh interpreter on the server's core that prints one JSON line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import pinned
from benchmarks.servers import ROOT
from service.engine.model_runner import ModelRunner
from service.interpreter import hurry_threads, spare_the_collector
from service.logs import configure_logs
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings, load_settings

Run = tuple[int, int, float]
"""(rows, steps, seconds)"""


def run_child(module: str, *arguments: object, core: int) -> dict[str, Any]:
    """`python -m benchmarks.<module>`, and the last line that it prints."""
    with pinned(core):
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"benchmarks.{module} failed:\n{done.stderr[-3000:]}")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


@asynccontextmanager
async def loaded(repository: Path, **overrides: Any) -> AsyncIterator[tuple[Registry, Settings, Metrics]]:
    """The models as `python -m service` loads them, engines started, in an interpreter that is set as it sets it."""
    settings = load_settings(model_repository=repository, log_level="error", **overrides)
    configure_logs(settings)
    metrics = Metrics()
    registry = Registry(settings, metrics)
    await registry.load()
    spare_the_collector()
    hurry_threads()
    try:
        yield registry, settings, metrics
    finally:
        await registry.close(0.0)


@contextmanager
def recorded_runs() -> Iterator[list[Run]]:
    """Every run of any model, in order."""
    runs: list[Run] = []
    original = ModelRunner.run

    def run(self: ModelRunner, inputs: Any, *rest: Any, **named: Any) -> Any:
        output = original(self, inputs, *rest, **named)
        runs.append((inputs.shape[0], inputs.shape[1], output.seconds))
        return output

    ModelRunner.run = run  # type: ignore[method-assign]
    try:
        yield runs
    finally:
        ModelRunner.run = original  # type: ignore[method-assign]
