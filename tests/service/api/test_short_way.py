"""The short way answers as the long one does: the same verdict, the same bytes, the same state, the same counts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.engine import Engine
from service.errors import CarouselError, Stale
from tests.service.api.clients import LSTM, SUM, TOKENS
from tests.service.api.socket_server import LONG_WAY, Answer, Wire, get, open_wire, post, steps_path
from tests.service.protocol.test_steps import bodies

SHAPES = {"numbers": SUM, "tokens": TOKENS, "two axes": LSTM}
"""Which model a body is made for; the LSTM is sent the wrong shape only."""
BIG = b'{"inputs": [[3e38, 3e38], [3e38, 3e38]]}'
"""The running sum of these is no number any more."""
NUMBERS = count()


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def wire(repository: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Wire]:
    store = "memory" if request.param == "memory" else f"sqlite:///{tmp_path_factory.mktemp('states')}/states"
    with open_wire(repository, state_store=store, max_steps=1000, max_body_bytes=100_000) as opened:
        yield opened


def pair(wire: Wire, model: str) -> tuple[str, str]:
    """The paths of two new sequences of the model, ids of one length."""
    paths = tuple(steps_path(model, f"{way}-{next(NUMBERS):06}") for way in ("short", "long-"))
    caller = wire.connect()
    for path in paths:
        name = path.split("/")[-2]
        assert caller.call(post(path.rsplit("/", 2)[0], b'{"sequence_id": "%s"}' % name.encode())).status == 201
    caller.close()
    return paths[0], paths[1]


def alike(answer: Answer, path: str) -> Any:
    """An answer without the name of its sequence."""
    status, headers, body = answer.without_times
    return status, headers, body.replace(path.split("/")[-2].encode(), b"")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=st.lists(bodies(), min_size=8, max_size=20))
def test_any_bodies_lead_to_the_same_answers_and_states(wire: Wire, made: list[tuple[str, bytes]]) -> None:
    caller = wire.connect()
    paths = {model: pair(wire, model) for model in {SHAPES[which] for which, _ in made}}
    for which, body in made:
        short, long = paths[SHAPES[which]]
        assert alike(caller.call(post(short, body)), short) == alike(caller.call(post(long, body, LONG_WAY)), long)
    for short, long in paths.values():
        states = [caller.call(get(path.replace("/steps", "/state"))).document for path in (short, long)]
        assert states[0]["step"] == states[1]["step"]
        assert states[0]["state"] == states[1]["state"]
    caller.close()


def test_most_good_calls_take_the_short_way_and_the_others_do_not(wire: Wire) -> None:
    caller, (path, other), before = wire.connect(), pair(wire, SUM), wire.steps.taken
    for step in range(3):
        assert caller.call(post(path, b'{"inputs": [[1, 2]], "step": %d}' % step)).status == 200
    assert wire.steps.taken == before + 3
    repeated = caller.call(post(path, b'{"inputs": [[1, 2]], "step": 2}'))
    assert repeated.document["replayed"]
    assert caller.call(post(other, b'{"inputs": [[1, 2]]}', LONG_WAY)).status == 200
    assert wire.steps.taken == before + 3


def test_failures_are_the_same_and_counted_once(wire: Wire) -> None:
    caller, (short, long) = wire.connect(), pair(wire, SUM)
    code = 'carousel_errors_total{code="non_finite_result"}'
    route = steps_path("{model}", "{sequence_id}")
    status = f'carousel_http_requests_total{{method="POST",route="{route}",status="422"}}'
    answers = []
    for path, header in ((short, b""), (long, LONG_WAY)):
        taken, failed, told = wire.steps.taken, wire.metric(code), wire.metric(status)
        with structlog.testing.capture_logs() as logs:
            answers.append(alike(caller.call(post(path, BIG, header)), path))
            assert (wire.metric(code), wire.metric(status)) == (failed + 1, told + 1)  # asked after the line is logged
        assert wire.steps.taken == taken + (path == short)
        logs = [{name: value for name, value in line.items() if name != "seconds"} for line in logs]
        answers.append(logs)
    assert answers[0][0] == 422
    assert answers[:2] == answers[2:]


def test_a_full_queue_and_a_stopped_engine_are_told_alike(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    caller, (short, long) = wire.connect(), pair(wire, SUM)
    engine: Engine = wire.app.state.service.registry.get(SUM).engine
    for name, value, expected in (("_max_queue", 0, 503), ("failed", True, 500)):
        before = wire.steps.taken
        with monkeypatch.context() as patch:
            patch.setattr(engine, name, value)
            answers = [
                alike(caller.call(post(short, b'{"inputs": [[1, 2]]}')), short),
                alike(caller.call(post(long, b'{"inputs": [[1, 2]]}', LONG_WAY)), long),
            ]
        assert answers[0][0] == expected
        assert answers[0] == answers[1]
        assert wire.steps.taken == before + 1
    wire.wait_until_done()


@pytest.mark.parametrize("header", [b"", LONG_WAY], ids=["short", "long"])
def test_a_call_behind_one_that_fails_is_a_conflict(wire: Wire, header: bytes) -> None:
    first, second, (path, _) = wire.connect(), wire.connect(), pair(wire, SUM)
    for caller in (first, second):
        assert caller.call(get("/health/live")).status == 200
    with wire.held():
        first.send(post(path, BIG, header))
        second.send(post(path, b'{"inputs": [[1, 2]], "step": 2}', header))
    answers = sorted((first.receive(), second.receive()), key=lambda answer: answer.status)
    assert [answer.status for answer in answers] == [409, 422]
    assert answers[0].document["code"] == "step_conflict"
    assert answers[0].document["expected_step"] == 0


def test_an_answer_that_cannot_be_written_is_an_error_and_stops_nothing(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, other, (path, beside) = wire.connect(), wire.connect(), pair(wire, SUM)

    def fail(sequence: Any, result: Any) -> Any:
        if sequence.id == path.split("/")[-2]:
            raise RuntimeError("a bug")
        return {"sequence_id": sequence.id}

    monkeypatch.setattr("service.api.short_steps.steps_answer", fail)
    with structlog.testing.capture_logs() as logs:
        with wire.held():
            caller.send(post(path, b'{"inputs": [[1, 2]]}'))
            other.send(post(beside, b'{"inputs": [[1, 2]]}'))
        answer = caller.receive()
        assert other.receive().status == 200
    assert logs[0]["event"] == "request_failed"
    assert (answer.status, answer.document["code"]) == (500, "internal_error")
    assert "a bug" not in answer.body.decode()
    monkeypatch.undo()
    assert caller.call(post(path, b'{"inputs": [[1, 2]]}')).document["step"] == 2
    wire.wait_until_done()


def test_a_fault_before_the_call_began_leaves_it_to_the_long_way(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    caller, (path, _) = wire.connect(), pair(wire, SUM)
    monkeypatch.setattr("service.protocol.steps.StepsReader.read", lambda *_: 1 / 0)
    with structlog.testing.capture_logs() as logs:
        assert caller.call(post(path, b'{"inputs": [[1, 2]]}')).document["step"] == 1
    assert [line["event"] for line in logs] == ["short_way_failed"]
    wire.wait_until_done()


def test_a_fault_while_a_call_is_tried_again_is_told(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    async def moved_elsewhere(endings: list[Any]) -> list[CarouselError | None]:
        return [Stale("Another process moved it.")] * len(endings)

    async def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    caller, (path, _) = wire.connect(), pair(wire, SUM)
    monkeypatch.setattr(wire.app.state.service.registry.get(SUM).engine, "commit", moved_elsewhere)
    monkeypatch.setattr("service.stepping.Stepping.step", fail)
    with structlog.testing.capture_logs() as logs:
        answer = caller.call(post(path, b'{"inputs": [[1, 2]]}'))
    assert (answer.status, answer.document["code"]) == (500, "engine_failure")
    assert logs[0]["event"] == "step_failed"
    monkeypatch.undo()
    assert caller.call(post(path, b'{"inputs": [[1, 2]]}')).document["step"] == 1
    wire.wait_until_done()


def test_a_call_that_ended_is_answered_whatever_fails_afterwards(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    caller, (path, _) = wire.connect(), pair(wire, SUM)
    monkeypatch.setattr("service.visits.Visits.confirm", lambda *_: 1 / 0)
    with structlog.testing.capture_logs() as logs:
        assert caller.call(post(path, b'{"inputs": [[1, 2]]}')).document["step"] == 1
        wire.wait_until(lambda: wire.num_running == 0 and bool(logs))
    assert [line["event"] for line in logs] == ["end_failed"]


def test_what_calls_made_goes_without_the_collector(wire: Wire) -> None:
    caller, (path, _) = wire.connect(), pair(wire, SUM)
    assert caller.call(post(path, b'{"inputs": [[1, 2]]}')).status == 200
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(200):
            assert caller.call(post(path, b'{"inputs": [[1, 2]]}')).status == 200
        assert len(gc.get_objects()) < before + 100
    finally:
        gc.enable()
