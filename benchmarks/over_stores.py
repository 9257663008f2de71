"""What it costs to commit every step: the same steps with each store of states, side by side."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.bench_models import SMALL
from benchmarks.over_http import STREAMS
from benchmarks.servers import DURABLE


def measure_stores(bench: Bench) -> None:
    """Steps of H=64 at 128 streams, one a call. A store that cannot be had here is left out."""
    names = ["carousel", *(name for name in DURABLE if name in bench.servers)]
    bench.order.shuffle(names)
    outcomes = {name: bench.measure(name, SMALL, STREAMS, bench.sizes.closed_seconds) for name in names}
    if not (memory := outcomes["carousel"]):
        return
    for name in DURABLE:
        if outcome := outcomes.get(name):
            bench.note(f"{name}_rate", outcome.rate / memory.rate)
            bench.note(f"{name}_cpu", outcome.server_cpu_us - memory.server_cpu_us)
