"""States that stay on the device beside states on the host: ticks of gather, run, look and scatter, in turn.

The same rows again and again move no states, on the host or on the device; so rows that take turns are measured too.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from benchmarks.bench_models import export_model
from benchmarks.figures import number
from service.engine.device_rows import DeviceRows
from service.engine.device_runner import DeviceRunner
from service.engine.model_runner import ModelRunner

ROWS = (1, 32, 128, 256)
MODELS = (("lstm", 16, 64, 1), ("gru", 16, 64, 1), ("lstm", 64, 512, 2), ("gru", 64, 512, 2))
"""(cell, features, hidden, layers)"""
NUM_SLOTS = 100_000
"""As a server has them."""
ALLOWED = 1e-4
"""Difference of states in the end, on a GPU; on the CPU there is none."""
TICKS_IN_TURN = 10


def provider_at_hand() -> str:
    return "cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu"


class Kept:
    """One model with its arena, and a tick of it: of the same rows each time, or of two halves in turn."""

    def __init__(self, runner: ModelRunner, rows: int, x: np.ndarray, *, in_turn: bool) -> None:
        self._runner, self._x = runner, x
        self._arena = runner.rows(NUM_SLOTS)
        if isinstance(runner, DeviceRunner) != isinstance(self._arena, DeviceRows):
            raise SystemExit("The device failed at a trial, and the states would stay on the host: see the line above.")
        slots = np.random.default_rng(0).permutation(NUM_SLOTS // 100)
        self._batches = [slots[:rows], slots[rows : 2 * rows]] if in_turn else [slots[:rows]]
        self.seconds: list[float] = []
        for slot in np.concatenate(self._batches).tolist():
            self._arena.write(slot, None, 0)

    def tick(self) -> None:
        begin = perf_counter()
        self._batches.append(slots := self._batches.pop(0))
        output = self._runner.run(self._x, self._arena.gather(slots))
        assert not self._arena.non_finite(output.states), "bounded cells on bounded inputs"
        self._arena.scatter(slots, output.states)
        self.seconds.append(perf_counter() - begin)

    def states(self) -> np.ndarray:
        rows = (self._arena.read(slot) for slot in np.sort(np.concatenate(self._batches)).tolist())
        return np.stack([np.concatenate([part.ravel() for part in row]) for row in rows])


def compare_states(console: Console, provider: str, seconds: float, chunk: int) -> list[dict[str, Any]]:
    """Medians of a tick's seconds, for each model and number of rows."""
    found = []
    for cell, features, hidden, layers in MODELS:
        table = Table("Rows", "which", "states on the host, us", "on the device, us", "host / device")
        table.title = f"{provider}: {cell} H={hidden} L={layers}, T={chunk}: a tick"
        with tempfile.TemporaryDirectory(prefix="carousel-bench-") as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(export_model(cell, features, hidden, layers, "model"))
            runners = [kind(path, provider=provider) for kind in (ModelRunner, DeviceRunner)]
        for rows, in_turn in product(ROWS, (False, True)):
            x = np.random.default_rng(rows).uniform(-1, 1, (rows, chunk, features)).astype(np.float32)
            both = [Kept(runner, rows, x, in_turn=in_turn) for runner in runners]
            host, device = _take_turns(both, provider, seconds)
            cells = "in turn" if in_turn else "the same", number(host * 1e6), number(device * 1e6)
            table.add_row(str(rows), *cells, f"{host / device:.2f}x")
            model = {"cell": cell, "hidden": hidden, "layers": layers}
            found.append({**model, "rows": rows, "in_turn": in_turn, "host": host, "device": device})
        console.print(table)
    if provider == "cpu":
        console.print("On the CPU nothing crosses a bus and nothing can be gained: this is what the way itself costs.")
    return found


def _take_turns(both: list[Kept], provider: str, seconds: float) -> list[float]:
    """Each one's median. Raises SystemExit when they do not hold the same states in the end."""
    for kept in both:  # warm
        for _ in range(TICKS_IN_TURN):
            kept.tick()
        kept.seconds.clear()
    end = perf_counter() + seconds
    while perf_counter() < end:
        for kept in both:
            for _ in range(TICKS_IN_TURN):
                kept.tick()
    host, device = (kept.states() for kept in both)
    if np.abs(host - device).max() > (0.0 if provider == "cpu" else ALLOWED):
        raise SystemExit("States on the device are not those on the host.")
    return [median(kept.seconds) for kept in both]
