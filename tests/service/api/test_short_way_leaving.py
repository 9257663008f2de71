"""Callers who leave, wait, or never read; a server that is told to stop. No call is lost or left behind."""

from __future__ import annotations

import gc
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import structlog

from service.engine.engine import Engine
from service.engine.request import Request
from service.sequence import Sequence
from tests.service.api.clients import SUM
from tests.service.api.socket_server import LONG_WAY, Caller, Wire, get, open_wire, post, steps_path

ONE = b'{"inputs": [[1, 2]]}'
NUMBERS = count()
ALL = f"/v1/models/{SUM}/sequences"


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def wire(repository: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Wire]:
    store = "memory" if request.param == "memory" else f"sqlite:///{tmp_path_factory.mktemp('states')}/states"
    with open_wire(repository, state_store=store) as opened:
        yield opened


@pytest.fixture
def path(wire: Wire) -> str:
    return begun(wire)


def begun(wire: Wire) -> str:
    """The path of a new sequence."""
    name = f"s-{next(NUMBERS)}"
    assert wire.connect().call(post(ALL, b'{"sequence_id": "%s"}' % name.encode())).status == 201
    return steps_path(SUM, name)


def sequence_of(wire: Wire, path: str) -> Sequence:
    found = wire.app.state.service.sequences.look_up(("anonymous", SUM, path.split("/")[-2]))
    assert found is not None
    return found


def engine_of(wire: Wire) -> Engine:
    engine: Engine = wire.app.state.service.registry.get(SUM).engine
    return engine


def reset(caller: Caller) -> None:
    """Leave at once: the server's next read or write fails."""
    caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.close()


def assert_quiet(wire: Wire, path: str) -> None:
    """Nothing is under way, and nothing of what was is held."""
    scheduler = engine_of(wire)._scheduler
    wire.wait_until_taken()
    wire.wait_until(lambda: wire.num_running == 0 and not scheduler.num_requests)

    def look() -> None:
        sequence = sequence_of(wire, path)
        assert sequence.turns is None
        assert sequence.steps_queued == 0
        assert not scheduler._slots
        assert scheduler.num_requests == 0

    wire.ask(look)


@pytest.mark.parametrize("leave", [Caller.close, reset])
@pytest.mark.parametrize("sent", ["all", "a part", "the head"])
def test_a_caller_who_leaves_can_send_the_call_again(wire: Wire, path: str, leave: Any, sent: str) -> None:
    caller, request = wire.connect(), post(path, b'{"inputs": [[1, 2]], "step": 1}')
    assert caller.call(post(path, ONE)).status == 200
    with wire.held():  # the end of the connection is read together with the call
        caller.send(request[: {"all": len(request), "a part": -5, "the head": -len(ONE)}[sent]])
        leave(caller)
    assert_quiet(wire, path)
    ran = sequence_of(wire, path).step == 2
    assert sent == "all" or not ran
    again = wire.connect().call(request).document
    assert (again["step"], again["replayed"], again["outputs"]) == (2, ran, [[2, 4]])


def test_a_caller_who_leaves_while_it_waits_is_withdrawn(
    wire: Wire, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, others, taken = wire.connect(), [wire.connect() for _ in range(3)], wire.steps.taken
    engine = engine_of(wire)
    monkeypatch.setattr(engine._scheduler, "next_batch", lambda now: None)
    caller.send(post(path, ONE))
    wire.wait_until(lambda: wire.steps.taken == taken + 1)
    for other in others:
        other.send(post(path, ONE))
    wire.wait_until(lambda: wire.steps.taken == taken + 4)
    assert wire.num_running == 4
    with structlog.testing.capture_logs() as logs:
        caller.close()
        wire.wait_until(lambda: wire.num_running == 3)
    assert [line["status"] for line in logs] == [499]
    assert sequence_of(wire, path).steps_queued == 3
    monkeypatch.undo()
    wire.ask(engine._ticker.wake)
    assert sorted(other.receive().document["step"] for other in others) == [1, 2, 3]
    assert_quiet(wire, path)


def test_a_caller_who_leaves_during_the_run_moves_nothing(
    wire: Wire, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, engine = wire.connect(), engine_of(wire)
    run = engine._runner.run

    def run_and_lose(*args: Any) -> Any:
        call = next(c.cycle for c in wire.server.server_state.connections if c.cycle and not c.cycle.response_complete)
        call.disconnected = True
        call.message_event.set()
        return run(*args)

    monkeypatch.setattr(engine._runner, "run", run_and_lose)
    with structlog.testing.capture_logs() as logs:
        caller.send(post(path, ONE))
        wire.wait_until(lambda: bool(logs))
    assert [line["status"] for line in logs] == [499]
    assert_quiet(wire, path)
    assert sequence_of(wire, path).step == 0


def test_an_answer_that_was_lost_can_be_had_again(wire: Wire, path: str) -> None:
    caller, request = wire.connect(), post(path, b'{"inputs": [[1, 2]], "step": 0}')
    caller.send(request)
    wire.wait_until(lambda: sequence_of(wire, path).step == 1)
    reset(caller)
    again = wire.connect().call(request)
    assert (again.document["step"], again.document["replayed"]) == (1, True)
    assert_quiet(wire, path)


@pytest.mark.parametrize("paused", [True, False], ids=["while they wait", "while they run"])
def test_ten_thousand_cancelled_calls_leave_nothing(
    wire: Wire, path: str, monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    engine, sequences = engine_of(wire), wire.app.state.service.sequences
    slots, held = engine._slots.num_used, len(list(sequences._residence.residents))
    if paused:
        monkeypatch.setattr(engine._scheduler, "next_batch", lambda now: None)
    request = post(path, ONE)
    for _ in range(100):
        callers = [wire.connect() for _ in range(10)]
        with wire.held():
            for n, caller in enumerate(callers):
                more = b"" if paused else request * 9  # they are read only when the first is answered
                caller.send(request[:-3] if n == 9 else request + more)
                (reset if n % 2 else Caller.close)(caller)
        del wire.callers[-10:]
    assert_quiet(wire, path)
    monkeypatch.undo()
    assert (engine._slots.num_used, len(list(sequences._residence.residents))) == (slots, held)
    step = sequence_of(wire, path).step
    assert (step == 0) == paused
    assert wire.connect().call(post(path, b'{"inputs": [[1, 2]], "step": %d}' % step)).document["step"] == step + 1
    gc.collect()
    assert not [kept for kept in gc.get_objects() if type(kept) is Request]


def test_a_quiet_connection_is_closed_and_one_in_mid_request_is_not(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_wire(repository, keep_alive_seconds=0.2) as wire:
        path, slow, other = begun(wire), wire.connect(), wire.connect()
        request = post(path, ONE)
        assert slow.call(request).document["step"] == 1
        for at in (10, len(request) - 5):
            slow.send(request[:at])
            assert other.call(request).status == 200
            assert other.is_closed()  # it was quiet for as long as the slow one
            other = wire.connect()
            slow.send(request[at:])
            assert slow.receive().status == 200
        with monkeypatch.context() as patch:
            patch.setattr(engine_of(wire), "_max_queue", 0)
            slow.send(request, request[:-5])  # the refusal is given while the rest is read
            assert slow.receive().status == 503
        assert other.call(request).status == 200
        assert other.is_closed()
        slow.send(request[-5:])
        assert slow.receive().status == 200
        assert slow.is_closed()


def test_a_connection_that_became_a_stream_is_no_quiet_connection(repository: Path) -> None:
    with open_wire(repository, keep_alive_seconds=0.2) as wire:
        path, caller, other = begun(wire), wire.connect(), wire.connect()
        assert caller.call(post(path, ONE)).status == 200
        upgrade = (
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        caller.send(get(f"/v1/models/{SUM}/stream")[:-2] + upgrade)
        assert caller.receive().status == 101
        assert other.call(post(path, ONE)).status == 200
        assert other.is_closed()  # quiet for as long
        caller.send(b"\x89\x80\x00\x00\x00\x00")
        assert caller.socket.recv(2) == b"\x8a\x00", "a ping is answered"


def test_a_caller_who_reads_nothing_is_read_from_no_more_and_loses_nothing(wire: Wire, path: str) -> None:
    caller, sent = wire.connect(receive_buffer=4096), 0
    request = post(path, b'{"inputs": [%b], "commit": false}' % b",".join([b"[0.1,0.7]"] * 100))
    caller.socket.settimeout(0.5)
    with suppress(TimeoutError):
        while True:  # until nothing is taken any more
            sent += caller.socket.send((request * 50)[sent % len(request) :])
    (connection,) = (one for one in wire.server.server_state.connections if one.pipeline)
    wire.wait_until(lambda: connection.flow.write_paused)
    assert len(connection.pipeline) < 2 * 262_144 / len(request), "what was read at once, and no more"
    assert connection.transport.get_write_buffer_size() < 100_000
    caller.socket.settimeout(30)
    caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
    answers = [caller.receive() for _ in range(sent // len(request))]
    answers.append(caller.call((request * 2)[sent % len(request) : len(request)]))
    assert len({answer.body.partition(b'"expires_at"')[0] for answer in answers}) == 1
    assert_quiet(wire, path)


@pytest.mark.parametrize("header", [b"", LONG_WAY], ids=["short", "long"])
@pytest.mark.parametrize("sent", ["all", "a part"])
def test_a_call_under_way_when_the_server_is_told_to_stop_is_answered(
    repository: Path, monkeypatch: pytest.MonkeyPatch, header: bytes, sent: str
) -> None:
    with open_wire(repository) as wire:
        path, caller, idle = begun(wire), wire.connect(), wire.connect()
        engine, request = engine_of(wire), post(path, ONE, header)
        assert [one.call(request).status for one in (caller, idle)] == [200, 200]
        with monkeypatch.context() as patch:
            patch.setattr(engine._scheduler, "next_batch", lambda now: None)
            caller.send(request if sent == "all" else request[:-5])
            wire.wait_until(lambda: wire.num_running == 1)
            wire.server.should_exit = True
            wire.wait_until(lambda: bool(wire.app.state.service.draining))
            refused = idle.call(request)
            assert (refused.status, refused.document["code"]) == (503, "draining")
            assert refused.headers["connection"] == "close"
            assert idle.is_closed()
            assert wire.connect().call(get("/health/ready")).status == 503
        caller.send(b"" if sent == "all" else request[-5:])
        wire.ask(engine._ticker.wake)
        answer = caller.receive()
        assert (answer.status, answer.document["step"], answer.headers["connection"]) == (200, 3, "close")
        assert caller.is_closed()
