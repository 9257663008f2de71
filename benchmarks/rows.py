"""Every row of the table, with the figure it should reach. What is not here is not measured."""

from __future__ import annotations

from benchmarks.bench_models import LARGE, SMALL
from benchmarks.figures import Row

OBJECTIVE_MS = 10.0
"""p99 that the rate held at H=64 must keep to."""

SHORT = {SMALL: "H=64", LARGE: "H=512, L=2"}


def empty_rows() -> dict[str, Row]:
    """By key, in the order of the table, without values."""
    return {row.key: row for row in (*_over_http(), *_in_process())}


def _over_http() -> list[Row]:
    return [
        Row("cpu_over_echo", "Server CPU a step over bare-ASGI echo, H=64, 128 streams", "x", 1.4, "lower"),
        Row("infer_cpu", "Server CPU a step of /v2 infer in binary form, H=64, 128 streams", "us", None, "lower"),
        Row("infer_over_steps_1", "The same over that of a step under /v1 in JSON, 1 step a call", "x", None, "lower"),
        Row("infer_over_steps_32", "The same, 32 steps a call", "x", 1.0, "lower"),
        Row("over_naive_small_128", "Steps/s over the naive server, H=64, 128 streams", "x", 5.0),
        Row("over_naive_large_128", "Steps/s over the naive server, H=512 L=2, 128 streams", "x", 10.0),
        *(
            Row(f"over_naive_{size}_{streams}", f"Steps/s over the naive server, {SHORT[name]}, {streams} streams")
            for size, name in (("small", SMALL), ("large", LARGE))
            for streams in (1, 32)
        ),
        Row(
            "binary_over_post", "Steps a server CPU second, binary stream of 256 a frame over JSON POST, H=64", "x", 8.0
        ),
        Row("text_over_post", "Steps a server CPU second, text stream over JSON POST, H=64, 128 streams"),
        Row(
            "sqlite_rate", "Steps/s with each step committed to SQLite over those without, H=64, 128 streams", "x", 0.75
        ),
        Row("redis_rate", "The same with Redis, which has the server's core too"),
        Row("sqlite_cpu", "Server CPU that committing a step to SQLite takes, H=64, 128 streams", "us", None, "lower"),
        Row("redis_cpu", "The same with Redis, without Redis' own", "us", None, "lower"),
        Row("backlog_small", "Streaming p99 beside 2,000-step jobs over p99 without, H=64", "x", 1.3, "lower"),
        Row("backlog_large", "Streaming p99 beside 2,000-step jobs over p99 without, H=512 L=2", "x", 1.3, "lower"),
        Row("rate_held", f"Rate held at p99 <= {OBJECTIVE_MS:g} ms over offline rate, H=64, 512 streams", "x", 0.9),
    ]


def _in_process() -> list[Row]:
    return [
        Row("engine_large_1", "Engine over raw run of its (B, T), H=512 L=2, 128 sequences, 1 step a call", "x", 0.9),
        Row("engine_small_1", "Engine over raw run of its (B, T), H=64, 128 sequences, 1 step a call", "x", 0.7),
        Row("engine_small_32", "Engine over raw run of its (B, T), H=64, 128 sequences, 32 steps a call", "x", 0.7),
        Row("padding", "Steps that carry data over steps executed, mixed lengths", "", 1.0, "equal"),
        Row("over_padded_small", "Useful steps/s over padded request-level batching, H=64"),
        Row("over_padded_large", "Useful steps/s over padded request-level batching, H=512 L=2"),
        Row("over_raw_one_small", "Engine steps/s over raw run at B=1, H=64, 1 step a call"),
        Row("over_raw_one_large", "Engine steps/s over raw run at B=1, H=512 L=2, 1 step a call"),
        Row("zeros", "Run time after a minute of zeros over before, decaying H=64", "x", 1.2, "lower"),
        Row("idle_bytes", "Bytes of an idle sequence beyond 1.5x its state, H=64, 1,000,000", "B", 200.0, "lower"),
        Row("idle_memory", "Memory of 1,000,000 idle sequences, H=64", "GB", 1.0, "lower"),
        Row("stall_create", "Longest stall while 100,000 sequences begin", "ms", 5.0, "lower"),
        Row("stall_expire", "Longest stall while 100,000 sequences expire", "ms", 5.0, "lower"),
    ]
