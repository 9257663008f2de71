"""What a second core brings: two threads inside a run, or two runs of half the rows side by side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from rich.console import Console
from rich.table import Table

from benchmarks.bench_models import export_model
from benchmarks.figures import number
from benchmarks.raw import RawSession

ROWS = (1, 2, 8, 32, 64, 128, 256)
MODELS = (("lstm", 16, 64, 1), ("gru", 16, 64, 1), ("lstm", 64, 512, 2), ("gru", 64, 512, 2))
"""(cell, features, hidden, layers)"""


def compare_cores(console: Console, seconds: float = 0.3, chunk: int = 1) -> None:
    """Steps/s of each way, and what it is of one thread."""
    for cell, features, hidden, layers in MODELS:
        title = f"{cell} H={hidden} L={layers}, T={chunk}: steps/s (over one thread)"
        table = Table("Rows", "1 thread", "2 threads", "2 sessions of 1 thread", title=title)
        model = export_model(cell, features, hidden, layers, "model")
        one, two = RawSession(model), RawSession(model, num_threads=2)
        halves = RawSession(model), RawSession(model)
        with ThreadPoolExecutor(2) as pool:
            for rows in ROWS:
                base = one.steps_per_second(rows, chunk, seconds)
                threads = two.steps_per_second(rows, chunk, seconds)
                sharded = side_by_side(halves, pool, rows, chunk, seconds) if rows > 1 else None
                cells = [f"{number(rate)} ({rate / base:.2f}x)" if rate else "" for rate in (threads, sharded)]
                table.add_row(str(rows), number(base), *cells)
        console.print(table)


def side_by_side(
    halves: tuple[RawSession, RawSession], pool: ThreadPoolExecutor, rows: int, chunk: int, seconds: float
) -> float:
    """Sequences dealt out to two sessions; each tick waits for both, as one engine with two runners would."""
    feeds = [half.feeds(rows // 2, chunk) for half in halves]
    runs, begin = 0, perf_counter()
    while (elapsed := perf_counter() - begin) < seconds:
        for future in [pool.submit(half.run, feed) for half, feed in zip(halves, feeds, strict=True)]:
            future.result()
        runs += 1
    return runs * (rows // 2) * 2 * chunk / elapsed
