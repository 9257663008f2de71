"""A server that is told to stop takes its connections back from its workers, answers what is under way, and is gone."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.engine.engine import Engine
from service.workers.pool import Workers
from tests.service.api.clients import SUM
from tests.service.api.socket_server import Caller, Wire, get, open_wire, post, steps_path
from tests.service.workers.wires import is_here, settle, stopped, wait_until_read, worker_processes

ONE = b'{"inputs": [[1, 2]], "start": true}'


def engine_of(wire: Wire) -> Engine:
    engine: Engine = wire.app.state.service.registry.get(SUM).engine
    return engine


def settled(wire: Wire, count: int) -> list[Caller]:
    return [settle(wire, wire.connect()) for _ in range(count)]


def pool_of(wire: Wire) -> Workers:
    pool = wire.server.workers
    assert pool is not None
    return pool


def stop(wire: Wire) -> None:
    wire.server.should_exit = True
    wire.wait_until(lambda: bool(wire.app.state.service.draining))


def test_calls_under_way_are_answered_and_idle_connections_told_to_move_on(
    sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_wire(sums, workers=2, drain_seconds=20) as wire:
        pids, callers, idle = pool_of(wire).pids, settled(wire, 4), settled(wire, 2)
        away_at_the_end: list[bool] = []
        stop_listening = wire.server._stop_listening

        async def note_and_stop(sockets: list[socket.socket]) -> None:
            away_at_the_end.append(pool_of(wire).are_away)
            await stop_listening(sockets)

        monkeypatch.setattr(wire.server, "_stop_listening", note_and_stop)
        for n, caller in enumerate(callers):
            assert caller.call(post(steps_path(SUM, f"s-{n}"), ONE)).document["step"] == 1
        engine = engine_of(wire)
        with monkeypatch.context() as patch:
            patch.setattr(engine._scheduler, "next_batch", lambda now: None)
            for n, caller in enumerate(callers):
                request = post(steps_path(SUM, f"s-{n}"), ONE)
                # one sends its next call too, which nobody has begun
                caller.send(request, request if n == 3 else b"")
            wire.wait_until(lambda: engine._scheduler.num_requests == 4)
            stop(wire)
            for caller in idle:
                wire.wait_until(lambda caller=caller: is_here(wire, caller))  # type: ignore[misc]
                refused = caller.call(post(steps_path(SUM, "s-0"), ONE))
                assert (refused.status, refused.document["code"]) == (503, "draining")
                assert refused.headers["connection"] == "close"
                assert caller.is_closed()
            assert wire.connect().call(get("/health/ready")).status == 503
            assert worker_processes() == {*pids}
        wire.ask(engine._ticker.wake)
        for n, caller in enumerate(callers):
            answer = caller.receive()
            assert (answer.status, answer.document["step"], answer.document["outputs"]) == (200, 2, [[2, 4]])
            if n == 3:
                assert "connection" not in answer.headers
                answer = caller.receive()
                assert answer.status == 503
            assert answer.headers["connection"] == "close"
            assert caller.is_closed()
    assert away_at_the_end == [False], "it has not waited for nothing until its time was over"
    assert not worker_processes(), "they have ended, and were waited for"


@contextmanager
def draining(wire: Wire) -> Iterator[None]:
    """The server is told to stop, and waits for a call of its own meanwhile."""
    engine, caller = engine_of(wire), wire.connect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._scheduler, "next_batch", lambda now: None)
        caller.send(post(steps_path(SUM, "slow"), ONE))
        wire.wait_until(lambda: engine._scheduler.num_requests == 1)
        stop(wire)
        yield
    wire.ask(engine._ticker.wake)
    assert caller.receive().status == 200


def test_half_a_call_that_a_worker_waits_for_does_not_keep_the_server(sums: Path) -> None:
    with open_wire(sums, workers=2) as wire:
        callers, request = settled(wire, 3), post(steps_path(SUM, "s"), ONE)
        for caller, at in zip(callers, (10, -len(ONE), -1), strict=True):
            caller.send(request[:at])
            wait_until_read(caller)
        with draining(wire):
            wire.wait_until(lambda: is_here(wire, callers[0]))
            callers[0].send(request[10:])
            for caller in callers:
                answer = caller.receive()
                assert (answer.status, answer.headers["connection"]) == (503, "close")
            wire.wait_until(lambda: not pool_of(wire).are_away)


def test_a_connection_that_is_on_its_way_to_a_worker_comes_back(sums: Path) -> None:
    with open_wire(sums, workers=2) as wire:
        (caller,), request = settled(wire, 1), post(steps_path(SUM, "s"), ONE)
        assert caller.call(get("/health/live")).status == 200, "it is here now"
        pool, handed = pool_of(wire), []

        def take_and_leave(*args: Any) -> bool:
            with stopped(pool.pids):  # so that they hear both in one go
                handed.append(pool.take(*args))
                pool.leave()
            return handed[-1]

        wire.server._ways.hand_over = take_and_leave
        while not handed:
            caller.send(request[:30])
            wire.ask(lambda: None)
            if not handed:
                assert caller.call(request[30:]).status == 200
        wire.wait_until(lambda: is_here(wire, caller))
        assert caller.call(request[30:]).status == 200


def test_a_worker_that_hangs_does_not_keep_the_server(sums: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.workers.pool.END_SECONDS", 0.05)
    with open_wire(sums, workers=2, drain_seconds=0.05) as wire:
        callers, request = settled(wire, 2), post(steps_path(SUM, "s"), ONE)
        for pid in pool_of(wire).pids:
            os.kill(pid, signal.SIGSTOP)
        callers[0].send(request)
        stop(wire)
        assert all(caller.is_closed() for caller in callers), "who is never answered would wait"
    assert not worker_processes()


def test_a_call_that_takes_longer_than_the_drain_is_hung_up_on(sums: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_wire(sums, workers=2, drain_seconds=0.05) as wire:
        (caller,), engine = settled(wire, 1), engine_of(wire)
        monkeypatch.setattr(engine._scheduler, "next_batch", lambda now: None)
        caller.send(post(steps_path(SUM, "s"), ONE), b"")
        wire.wait_until(lambda: engine._scheduler.num_requests == 1)
        stop(wire)
        assert caller.is_closed(), "nothing is told that might be taken for an answer"
        monkeypatch.undo()
        wire.ask(engine._ticker.wake)
    assert not worker_processes()


def test_no_worker_is_started_again_by_a_server_that_leaves(sums: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[bool] = []
    start_one = Workers._start_one

    async def start(self: Workers) -> None:
        started.append(self._leaving)
        await start_one(self)

    monkeypatch.setattr(Workers, "_start_one", start)
    with open_wire(sums, workers=2) as wire:
        pool = pool_of(wire)
        pids = pool.pids
        os.kill(pids[0], signal.SIGKILL)
        wire.wait_until(lambda: pids[0] not in pool.pids)
        with draining(wire):
            wire.wait_until(lambda: not pool._chores)
    assert not worker_processes()
    assert not any(started)
