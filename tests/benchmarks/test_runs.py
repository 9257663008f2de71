"""Short runs, end to end: servers, generator, reference, and the measurements in processes of their own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from benchmarks.bench_models import DECAYING, FEATURES, LARGE, SMALL, model_path
from benchmarks.child import run_child
from benchmarks.engine_bench import mixed_lengths, padded_batches
from benchmarks.load_process import LoadProcess
from benchmarks.machine import cores, cpu_seconds
from benchmarks.plan import KEPT_STREAMS, Outcome, Plan
from benchmarks.profile import find_model
from benchmarks.raw import Reference
from benchmarks.servers import CONTENDERS, Server, durable, running_servers
from tests.service.onnx_models import lstm

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of the benchmark's names and features, but tiny."""
    root = tmp_path_factory.mktemp("bench") / "models"
    for name in (SMALL, LARGE, DECAYING):
        lstm(root, name, features=FEATURES[name], hidden=8, outputs=4)
    return root


@pytest.fixture(scope="module")
def servers(repository: Path):
    with running_servers(repository, cores()[0], [*CONTENDERS, *durable()]) as running:
        yield running


@pytest.fixture(scope="module")
def load():
    with LoadProcess(cores()[1]) as process:
        yield process


def _run(load: LoadProcess, server: Server, name: str, num_streams: int = 4, **plan) -> Outcome:
    """Longer and longer, until something was counted: the machine may be busy."""
    plan = {"seconds": 0.2, "warm_seconds": 0.05, **plan}
    for times in (1, 10, 100):
        longer = {**plan, "seconds": times * plan["seconds"], "name": f"{name}-{times}"}
        outcome = load.run(Plan(server.port, server.pid, SMALL, FEATURES[SMALL], num_streams, **longer))
        if outcome.steps and (outcome.jobs or not plan.get("num_jobs")):
            break
    return outcome


@pytest.mark.parametrize("server", ["carousel", *durable(), "naive"])
def test_a_run_is_counted_and_equals_the_unbatched_reference(server, servers, load, repository):
    outcome = _run(load, servers[server], "closed")
    assert outcome.errors == 0, outcome.first_error
    assert outcome.steps == outcome.latency["count"] > 0
    assert 0 < outcome.server_cpu_seconds <= 1.5 * outcome.seconds
    reference = Reference(model_path(repository, SMALL))
    compared, wrong = reference.check(outcome.kept)
    assert compared >= len(KEPT_STREAMS)
    assert wrong == 0
    outcome.kept["1"][0][0][0] += 1e-6
    assert reference.check(outcome.kept) == (compared, 1)


@pytest.mark.parametrize("door", ["text", "binary"])
def test_streams_are_counted_and_equal_the_unbatched_reference(door, servers, load, repository):
    outcome = _run(load, servers["carousel"], door, 5, door=door)
    assert outcome.errors == 0, outcome.first_error
    assert outcome.steps == outcome.latency["count"] > 0
    compared, wrong = Reference(model_path(repository, SMALL)).check(outcome.kept)
    assert compared >= len(KEPT_STREAMS)
    assert wrong == 0


@pytest.mark.parametrize("num_steps", [1, 3])
def test_steps_through_v2_are_compared_too(num_steps, servers, load, repository):
    outcome = _run(load, servers["carousel"], f"infer-{num_steps}", door="infer", steps_a_call=num_steps)
    assert outcome.errors == 0, outcome.first_error
    assert outcome.steps % num_steps == 0
    compared, wrong = Reference(model_path(repository, SMALL)).check(outcome.kept)
    assert compared >= num_steps * len(KEPT_STREAMS)
    assert wrong == 0


def test_jobs_run_beside_streams(servers, load):
    outcome = _run(load, servers["carousel"], "jobs", rate=50.0, num_jobs=2, job_steps=2000, seconds=0.5)
    assert outcome.errors == 0, outcome.first_error
    assert outcome.jobs > 0


def test_by_the_clock_every_intended_request_counts_even_if_the_server_cannot_keep_up(servers, load):
    rate, seconds, num_streams = 100_000.0, 0.02, 8
    outcome = _run(load, servers["echo"], "open", num_streams, rate=rate, seconds=seconds, warm_seconds=0.0)
    assert outcome.errors == 0, outcome.first_error
    assert abs(outcome.steps - rate * seconds) <= num_streams
    # the last ones went out when all before were answered; they waited about as long as it took to catch up
    assert outcome.latency["max_ms"] > 1000 * seconds / 4
    assert outcome.latency["p50_ms"] < outcome.latency["max_ms"]


def test_an_error_voids_the_run(servers, load):
    plan = Plan(servers["carousel"].port, servers["carousel"].pid, "no-such-model", 16, 2, 0.05)
    outcome = load.run(plan)
    assert "404" in outcome.void
    assert not outcome.kept


def test_cpu_time_is_that_of_the_process():
    before, known = cpu_seconds(os.getpid()), time.process_time()
    sum(range(2_000_000))
    assert cpu_seconds(os.getpid()) - before == pytest.approx(time.process_time() - known, rel=0.2)


def test_the_engine_is_measured_without_http_and_pads_nothing(repository):
    found = run_child("engine_bench", repository, 0.05, 0, core=cores()[0])
    assert found["padding"] == 1.0
    assert 0 < found["engine_small_1"] < 1.5
    assert found["over_padded_small"] > 0


def test_silence_and_idle_sequences_are_measured(repository):
    slowdowns = run_child("zeros", repository, 100, core=cores()[0])
    assert all(value > 0 for value in slowdowns.values())
    idle = run_child("idle", repository, 2000, 500, core=cores()[0])
    assert idle["state_bytes"] == 2 * 8 * 4
    assert idle["stall_create"] > 0
    assert idle["stall_expire"] > 0


def test_request_level_batches_are_as_long_as_their_longest():
    assert padded_batches([3, 9, 1, 2, 5], 2) == [(2, 9), (2, 2), (1, 5)]
    lengths = mixed_lengths(200, seed=1)
    assert min(lengths) >= 1
    assert max(lengths) <= 400
    assert lengths == mixed_lengths(200, seed=1) != mixed_lengths(200, seed=2)


def test_a_model_is_found_by_path_or_by_name(repository):
    path = model_path(repository, SMALL)
    newer = lstm(repository.parent / "others", SMALL, version=10)
    lstm(repository.parent / "others", SMALL, version=9)
    assert find_model(str(path), Path("nowhere")) == path
    assert find_model(SMALL, repository.parent / "others") == newer
    with pytest.raises(SystemExit, match="neither"):
        find_model("missing", repository)
