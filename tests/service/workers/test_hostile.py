"""Callers who do not read, who send without end, and who are there when the server leaves."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import pytest
import uvloop

from service.api.auth import ANONYMOUS
from service.api.short_steps import ShortSteps
from service.protocol.frame_answers import Failed, FrameWriter
from service.workers import pool
from service.workers.channel import Channel, Message, channel_pair
from service.workers.frame_link import FrameLink
from service.workers.front import MAX_AHEAD_BYTES, Connection, Front, Head
from service.workers.limits import FIRST_PATIENCE, STEPS_PATH, Limits
from service.workers.link import LinkStreams
from service.workers.steps_stream import StepsStream
from service.workers.tally import Tally
from tests.service import wire
from tests.service.api.clients import SUM, open_server, write_repository
from tests.service.api.processes import Served, serve
from tests.service.api.socket_server import Caller, post, steps_path
from tests.service.protocol.specs import spec

SPEC = spec(2)
STEP = b'{"inputs": [[0, 0]], "start": true}'
LIMITS = Limits({}, 100_000, 1000, 100, 100, 60.0, (0.1, 1.0))
READ_AT_ONCE = 256 * 1024
"""By uvloop, at most."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def served(repository: Path) -> Iterator[Served]:
    """Two workers, and more time to drain than a test may take."""
    with serve(repository, CAROUSEL_WORKERS="2", CAROUSEL_DRAIN_SECONDS="3600") as opened:
        yield opened


@contextmanager
def at_worker(served: Served, name: str) -> Iterator[Caller]:
    """A connection that was handed over."""
    connection = socket.create_connection(("127.0.0.1", int(served.address.rsplit(":", 1)[1])), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        caller = Caller(connection)
        for _ in range(2 * FIRST_PATIENCE):
            assert caller.call(post(steps_path(SUM, name), STEP)).status == 200
        yield caller


def test_a_server_that_is_told_to_stop_does_so_when_the_last_call_at_a_worker_is_answered(served: Served) -> None:
    with at_worker(served, "busy") as caller, suppress(EOFError, ConnectionError):
        served.process.send_signal(signal.SIGTERM)
        while caller.call(post(steps_path(SUM, "busy"), STEP)).headers.get("connection") != "close":
            pass
    assert served.process.wait(60) == 0


def test_callers_half_way_through_a_call_and_callers_who_do_not_read_hold_nobody_up(served: Served) -> None:
    call = post(steps_path(SUM, "unread"), STEP)
    with at_worker(served, "begun") as begun, at_worker(served, "unread") as unread:
        unread.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                unread.socket.send(call * 100)
        begun.send(call[:20])
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0


async def _flood(seconds: float) -> int:
    """What a worker keeps of a caller who sends and sends, and reads nothing."""
    loop = asyncio.get_running_loop()

    def ask(connection: Connection, head: Head, body: bytes) -> bool:
        loop.call_soon(connection.answer, b"." * 1000)
        return True

    front = Front(LIMITS, Tally(LIMITS.second_bounds), ask, lambda *_: None, lambda: None)
    there, here = socket.socketpair()
    connection = Connection(front, b"", FIRST_PATIENCE)
    await loop.create_unix_connection(lambda: connection, sock=here)
    there.setblocking(False)
    call, until, most = post(steps_path(SUM, "x"), STEP) * 1000, loop.time() + seconds, 0
    while loop.time() < until:
        try:
            there.send(call)
        except BlockingIOError:
            if not connection._transport.is_reading():  # type: ignore[attr-defined]
                until = min(until, loop.time() + 0.2)
        most = max(most, len(connection._data))
        await asyncio.sleep(0)
    there.close()
    await asyncio.sleep(0)
    return most


def test_little_is_kept_of_a_caller_who_does_not_read_what_it_asks_for() -> None:
    assert uvloop.run(_flood(3.0)) <= MAX_AHEAD_BYTES + 2 * READ_AT_ONCE


def test_a_connection_that_comes_when_no_descriptor_is_left_is_hung_up_on_and_what_follows_is_heard() -> None:
    uvloop.run(_without_descriptors())


async def _without_descriptors() -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()
    caller, connection = socket.socketpair()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    here, there = channel_pair()
    sender, receiver = Channel(here, lambda _: None, lambda: None), Channel(there, heard.put_nowait, lambda: None)
    with caller:
        sender.send(Message("connection", connection=connection.detach()))
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            assert await heard.get() == Message("connection")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert caller.recv(1) == b""
        sender.send(Message("told"))
        assert await heard.get() == Message("told")
    sender.close()
    receiver.close()


def test_a_worker_takes_what_the_engines_process_takes_for_steps() -> None:
    assert ShortSteps.path == STEPS_PATH


class _Asking:
    """Who waits for an answer."""

    def __init__(self) -> None:
        self.came: list[object] = []

    def answer(self, body: bytes) -> None:
        self.came.append(body)

    def fail(self, status: int, document: bytes) -> None:
        self.came.append((status, json.loads(document)))

    def give_back(self) -> None:
        self.came.append("back")


@pytest.mark.parametrize("code", ["store_unavailable", "internal_error", "queue_full"])
@pytest.mark.parametrize("step", [b"", b', "step": 0'])
def test_a_call_that_may_be_done_and_has_no_number_is_told_so_and_is_not_run_again(code: str, step: bytes) -> None:
    async def ask() -> list[object]:
        stream, asking = StepsStream("served-as", SPEC, LIMITS, lambda frame: None), _Asking()
        assert stream.ask(asking, "pump", b'{"inputs": [[1, 2]]%b}' % step)
        await asyncio.sleep(0)
        failed = Failed(0, 1, 503, json.dumps({"code": code, "instance": "elsewhere"}).encode())
        (frame,) = FrameWriter(SPEC).write([failed], 1000)
        stream.take(frame)
        return asking.came

    told = (503, {"code": code, "instance": "/v1/models/served-as/sequences/pump/steps"})
    is_unsure = code != "queue_full" and not step
    assert uvloop.run(ask()) == [told if is_unsure else "back"]


class _Link:
    """Answers of records by tag, as they come."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[tuple[int, int | None]] = asyncio.Queue()

    def send(self, number: int, frame: bytes) -> None:
        for answer in wire.answers(frame, output_size=2):
            if answer.kind == "stepped":
                self.came.put_nowait((answer.tag, answer.step))


def test_a_call_that_waits_for_its_turn_holds_up_no_other_callers_of_a_worker(repository: Path) -> None:
    async def ask() -> None:
        async with open_server(repository, max_stream_records=1) as running, asyncio.timeout(30):
            service, link = running.service, _Link()
            model = service.registry.get(SUM)
            busy = await service.sequences.create(ANONYMOUS, model, sequence_id="busy")
            assert busy.make_turns().try_enter(alone=True)
            streams = LinkStreams(service, cast("FrameLink", link), lambda: pytest.fail("a stream broke off"))
            number = streams.open((ANONYMOUS, SUM), model.spec)
            streams.take(number, wire.message(wire.open_block([(0, "busy")])))
            streams.take(number, wire.message(wire.step_block([(0, 7, None, (1, 2))])))
            streams.take(number, wire.message(wire.open_block([(1, "free")])))
            streams.take(number, wire.message(wire.step_block([(1, 8, 0, (1, 2))], flags=wire.START)))
            assert await link.came.get() == (8, 1)
            busy.make_turns().leave()
            assert await link.came.get() == (7, 1)
            streams.close()

    uvloop.run(ask())


def test_a_worker_that_hangs_is_ended_and_started_again(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_SILENT_LOOKS", 3)

    async def replaced() -> None:
        async with open_server(repository, workers=2) as running, asyncio.timeout(60):
            workers = running.server.workers
            assert workers is not None
            hung = workers.pids[0]
            os.kill(hung, signal.SIGSTOP)
            while hung in workers.pids or len(workers.pids) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    uvloop.run(replaced())
