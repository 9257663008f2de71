"""What int8 brought and what it cost: size, seconds a step and the task's figure, before and after."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from export.metadata import Document
from export.quantize import METHOD
from export.session import Array, Session
from export.verify import TaskMetric

STEP_ROWS = (1, 32)
RUNS = 100
NO_GAIN = 1.1
"""A step that is less than this many times faster is no faster: timings of one file differ as much from run to run."""


def measure(before: bytes, after: bytes, metric: TaskMetric | None) -> Document:
    """The manifest's `quantization`, of the fp32 file and the int8 one."""
    sessions = [Session(data) for data in (before, after)]
    document: Document = {
        "method": METHOD,
        "size_bytes": _change([len(before), len(after)]),
        "step_seconds": [{"rows": rows, **_change(_step_seconds(sessions, rows))} for rows in STEP_ROWS],
        "metric": None,
    }
    if metric:
        about = {key: metric.figure.get(key) for key in ("name", "unit", "better")}
        values = [metric.evaluate(session.predict) for session in sessions]
        document["metric"] = {**about, "split": "test", **_change(values)}
    return document


def metrics(quantization: Document, metric: TaskMetric | None) -> list[Document]:
    """The checkpoint's test figure as the int8 file has it; others were not measured on it."""
    return [{**metric.figure, "value": quantization["metric"]["after"]}] if metric else []


def show(quantization: Document, console: Console) -> None:
    table = Table("int8", "before", "after", "")
    size = quantization["size_bytes"]
    table.add_row("bytes", f"{size['before']:,}", f"{size['after']:,}", f"{_ratio(size):.1f} times smaller")
    for step in quantization["step_seconds"]:
        rows = "1 row" if step["rows"] == 1 else f"{step['rows']} rows"
        table.add_row(f"a step of {rows}", *(f"{1e6 * step[k]:,.0f} µs" for k in ("before", "after")), _speed(step))
    if figure := quantization["metric"]:
        values = (f"{figure[key]:.5g} {figure['unit'] or ''}".rstrip() for key in ("before", "after"))
        table.add_row(f"{figure['name']} (test)", *values, f"{figure['better']} is better")
    console.print(table)


def _speed(step: Document) -> str:
    ratio = _ratio(step)
    return f"{ratio:.1f} times faster" if ratio >= NO_GAIN else f"no gain ({ratio:.2f})"


def _ratio(change: Document) -> float:
    return float(change["before"] / change["after"])


def _change(values: list[Any]) -> Document:
    before, after = values
    return {"before": before, "after": after}


def _step_seconds(sessions: list[Session], rows: int) -> list[float]:
    """Median of many runs of one step; the sessions take turns, so that a slow moment is slow for both."""
    taken: list[list[float]] = [[] for _ in sessions]
    x, states = _zeros(sessions[0], rows), sessions[0].zero_states(rows)
    for _ in range(RUNS):
        for session, seconds in zip(sessions, taken, strict=True):
            begin = time.perf_counter()
            session.run(x, states)
            seconds.append(time.perf_counter() - begin)
    return [float(np.median(seconds)) for seconds in taken]


def _zeros(session: Session, rows: int) -> Array:
    """x of one step, (B, 1, F) or (B, 1)."""
    spec = session.manifest["inputs"][0]
    return np.zeros([rows, 1, *spec["shape"][2:]], spec["dtype"])
