"""Steps that come by several workers run together, and are counted as the calls that they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.engine.engine import Engine
from tests.service.api.clients import SUM
from tests.service.api.socket_server import Wire, open_wire, post, steps_path
from tests.service.workers.wires import is_here, settle, stopped, wait_until_left

ROUTE = steps_path("{model}", "{sequence_id}")


@pytest.fixture(scope="module")
def wire(sums: Path) -> Iterator[Wire]:
    with open_wire(sums, workers=4) as opened:
        yield opened


def engine_of(wire: Wire) -> Engine:
    engine: Engine = wire.app.state.service.registry.get(SUM).engine
    return engine


@pytest.mark.parametrize("num_callers", [8, 40], ids=["a few each", "frames of many"])
def test_steps_of_many_connections_run_together_whatever_worker_they_came_by(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, num_callers: int
) -> None:
    callers = [settle(wire, wire.connect()) for _ in range(num_callers)]
    paths = [steps_path(SUM, f"{num_callers}-{n}") for n in range(num_callers)]
    for caller, path in zip(callers, paths, strict=True):
        assert caller.call(post(path, b'{"inputs": [[1, 2]], "start": true}')).document["step"] == 1
    engine, pool = engine_of(wire), wire.server.workers
    assert pool is not None
    for step in range(1, 4):
        runs, steps = engine.num_runs, wire.metric(f'carousel_steps_total{{model="{SUM}",version="1"}}')
        with monkeypatch.context() as patch:  # nothing runs until all are there
            patch.setattr(engine._scheduler, "next_batch", lambda now: None)
            patch.setattr(type(engine._volleys), "__bool__", lambda _: False)
            with stopped(pool.pids):  # each finds its calls at once
                for caller, path in zip(callers, paths, strict=True):
                    caller.send(post(path, b'{"inputs": [[1, 2]], "step": %d}' % step))
            wire.wait_until(lambda: engine._scheduler.num_requests + engine._volleys.num_rows == num_callers)
        wire.ask(engine._ticker.wake)
        assert [caller.receive().document["step"] for caller in callers] == [step + 1] * num_callers
        wire.wait_until_done()
        assert wire.metric(f'carousel_steps_total{{model="{SUM}",version="1"}}') - steps == num_callers
        assert engine.num_runs - runs == 1


def test_more_sequences_and_calls_than_a_stream_may_have_at_once_are_all_answered(sums: Path) -> None:
    num_callers = 12
    with open_wire(sums, workers=2, max_stream_sequences=2, max_stream_records=3, max_steps=4) as wire:
        callers, pool = [settle(wire, wire.connect()) for _ in range(num_callers)], wire.server.workers
        assert pool is not None
        for step in range(6):
            inputs = (b"[[1, 2]]", b"[[1, 2], [0, 0], [0, 0]]")
            with stopped(pool.pids):
                for n, caller in enumerate(callers):
                    body = b'{"inputs": %b, "start": true, "outputs": "last"}' % inputs[n % 2]
                    caller.send(post(steps_path(SUM, f"s-{(n + step) % num_callers}"), body))
            for caller in callers:
                answer = caller.receive()
                assert (answer.status, answer.document["outputs"]) == (200, [[step + 1, 2 * step + 2]])
        assert not any(wire.ask(lambda: [is_here(wire, caller) for caller in callers]))


def test_calls_that_workers_answer_are_in_the_metrics(sums: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, step = steps_path(SUM, "s"), b'{"inputs": [[1, 2]], "start": true}'
    answered = f'carousel_http_requests_total{{method="POST",route="{ROUTE}",status="%d"}}'
    with open_wire(sums, workers=2) as wire:
        callers = [wire.connect() for _ in range(3)]
        for caller in callers:
            for _ in range(20):
                assert caller.call(post(path, step)).status == 200
        assert wire.steps.taken < 20, "workers had the others"
        assert callers[0].call(post(path, b'{"inputs": [[1, 2]], "step": 9}')).status == 409
        engine, leaver = engine_of(wire), callers[1]
        with monkeypatch.context() as patch:
            patch.setattr(engine._scheduler, "next_batch", lambda now: None)
            leaver.send(post(path, step))
            wire.wait_until(lambda: engine._scheduler.num_requests == 1)
            name = leaver.socket.getsockname()
            leaver.close()
            wait_until_left(wire.port, name)
        wire.ask(engine._ticker.wake)
        expected = {
            answered % 200: 60,
            answered % 499: 1,
            answered % 409: 1,
            f'carousel_http_request_seconds_count{{route="{ROUTE}"}}': 62,
            f'carousel_http_request_seconds_bucket{{le="+Inf",route="{ROUTE}"}}': 62,
            'carousel_errors_total{code="step_conflict"}': 1,
        }
        # a worker tells each second
        while (counts := {line: wire.metric(line) for line in expected}) != expected:
            assert all(count <= expected[line] for line, count in counts.items()), counts
        assert wire.metric(f'carousel_http_request_seconds_sum{{route="{ROUTE}"}}') > 0
        for _ in range(7):
            assert callers[2].call(post(path, step)).status == 200
        assert not wire.ask(lambda: is_here(wire, callers[2]))
    page = wire.app.state.service.metrics.render().decode()
    assert f"{answered % 200} 67.0" in page, "a worker that leaves tells what it has not told yet"
