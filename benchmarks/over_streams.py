"""What a step costs the server through a WebSocket, in text and in binary frames, beside the JSON POST."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.bench_models import SMALL
from benchmarks.over_http import STREAMS

FRAME_STREAMS = 512
"""Of the binary run: half of them in each frame."""


def measure_streams(bench: Bench) -> None:
    """Server CPU time a step of each door, H=64, in shuffled order."""
    cases = [("http", STREAMS), ("text", STREAMS), ("binary", FRAME_STREAMS)]
    bench.order.shuffle(cases)
    outcomes = {
        door: bench.measure("carousel", SMALL, streams, bench.sizes.closed_seconds, door=door)
        for door, streams in cases
    }
    post = outcomes["http"]
    for door in ("text", "binary"):
        if post and (stream := outcomes[door]):
            bench.note(f"{door}_over_post", post.server_cpu_us / stream.server_cpu_us)
