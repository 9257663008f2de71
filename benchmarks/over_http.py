"""What a client sees: capacity in a closed loop, latency in an open one."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.bench_models import LARGE, SMALL
from benchmarks.plan import Outcome
from benchmarks.rows import OBJECTIVE_MS

STREAMS = 128
MANY_STREAMS = 512
"""For the rate held: each stream's period is then longer than the objective, as sensors' are."""

CHUNK_STEPS = 32
"""A call of more steps is offline work."""

BACKLOG_JOBS = 8
BACKLOG_LOAD = 0.3
"""Of capacity, what the streams beside the backlog take."""

LOWEST, FIRST, HIGHEST = 0.4, 0.9, 1.1
"""Where the rate held is looked for, in parts of the offline rate."""

_SIZES = (("small", SMALL), ("large", LARGE))


def measure_capacity(bench: Bench) -> dict[str, float]:
    """The contenders at 128 streams in shuffled order, H=64 and H=512. Returns Carousel's steps/s by model."""
    contenders = [("echo", SMALL), *((server, model) for server in ("carousel", "naive") for _, model in _SIZES)]
    bench.order.shuffle(contenders)
    outcomes = {
        (server, model): bench.measure(server, model, STREAMS, bench.sizes.closed_seconds)
        for server, model in contenders
    }
    ours, echo = outcomes["carousel", SMALL], outcomes["echo", SMALL]
    if ours and echo:
        bench.note("cpu_over_echo", ours.server_cpu_us / echo.server_cpu_us)
    for size, model in _SIZES:
        bench.note(f"over_naive_{size}_{STREAMS}", _over(outcomes["carousel", model], outcomes["naive", model]))
    return {model: outcome.rate for _, model in _SIZES if (outcome := outcomes["carousel", model])}


def measure_few_streams(bench: Bench) -> None:
    """The same at 1 and 32 streams, for information."""
    cases = [(size, model, streams) for size, model in _SIZES for streams in (1, 32)]
    bench.order.shuffle(cases)
    for size, model, streams in cases:
        pair = ["carousel", "naive"]
        bench.order.shuffle(pair)
        outcomes = {server: bench.measure(server, model, streams, bench.sizes.side_seconds) for server in pair}
        bench.note(f"over_naive_{size}_{streams}", _over(outcomes["carousel"], outcomes["naive"]))


def measure_infer(bench: Bench) -> None:
    """Steps of H=64 in JSON under /v1 and in binary form under /v2, one a call and many."""
    cases = [(door, num_steps) for door in ("http", "infer") for num_steps in (1, CHUNK_STEPS)]
    bench.order.shuffle(cases)
    outcomes = {
        (door, num_steps): bench.measure(
            "carousel", SMALL, STREAMS, bench.sizes.closed_seconds, door=door, steps_a_call=num_steps
        )
        for door, num_steps in cases
    }
    if infer := outcomes["infer", 1]:
        bench.note("infer_cpu", infer.server_cpu_us)
    for num_steps in (1, CHUNK_STEPS):
        post, infer = outcomes["http", num_steps], outcomes["infer", num_steps]
        if post and infer:
            bench.note(f"infer_over_steps_{num_steps}", infer.server_cpu_us / post.server_cpu_us)


def measure_backlog(bench: Bench, capacity: dict[str, float]) -> None:
    """Streams at a part of capacity, without and with offline jobs that are always there."""
    for size, model in _SIZES:
        if model not in capacity:
            continue
        cases = [0, BACKLOG_JOBS]
        bench.order.shuffle(cases)
        rate = round(BACKLOG_LOAD * capacity[model], 1)
        p99 = {}
        for jobs in cases:
            outcome = bench.measure("carousel", model, STREAMS, bench.sizes.open_seconds, rate=rate, num_jobs=jobs)
            p99[jobs] = outcome.latency["p99_ms"] if outcome else None
        alone, beside = p99[0], p99[BACKLOG_JOBS]
        bench.note(f"backlog_{size}", beside / alone if alone and beside else None)


def measure_rate_held(bench: Bench) -> None:
    """Offline: as fast as answers come. Held: by the clock, at the highest rate whose p99 keeps to the objective."""
    offline = bench.measure("carousel", SMALL, MANY_STREAMS, bench.sizes.open_seconds)
    if not offline:
        return
    held, too_much, part = 0.0, HIGHEST, FIRST
    for _ in range(bench.sizes.probes):
        holds = _holds(bench, round(part * offline.rate, 1))
        if holds is None:
            return
        if holds:
            held = part
        else:
            too_much = part
        part = (max(held, LOWEST) + too_much) / 2
    bench.note("rate_held", held)


def _holds(bench: Bench, rate: float) -> bool | None:
    """Does p99 keep to the objective at `rate`, in either of two runs? None if both are void.

    Once behind, a server that is nearly full stays so for long: one pause of the machine would decide the run.
    """
    outcome = None
    for _ in range(2):
        outcome = bench.measure("carousel", SMALL, MANY_STREAMS, bench.sizes.open_seconds, rate=rate) or outcome
        if outcome and outcome.latency["p99_ms"] <= OBJECTIVE_MS:
            return True
    return None if outcome is None else False


def _over(ours: Outcome | None, theirs: Outcome | None) -> float | None:
    return ours.rate / theirs.rate if ours and theirs and theirs.rate else None
