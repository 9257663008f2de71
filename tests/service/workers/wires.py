"""Connections that a worker has, and what is answered on them."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.service.api.clients import LSTM, SUM, TOKENS
from tests.service.api.socket_server import Answer, Caller, Wire, open_wire, post, steps_path

STEP = {SUM: b"[[1, 2]]", TOKENS: b"[3]", LSTM: b"[[0.25, -1, 3]]"}
"""One step of each model."""
MOST_CALLS = 100

_TIMES = re.compile(rb'"\w+_at":"[^"]*"|expires_at\xb8.{24}')
"""In JSON, and in MessagePack."""


def is_here(wire: Wire, caller: Caller) -> bool:
    """Does the engine's process have the connection?"""
    name = caller.socket.getsockname()
    return any(one.client == name for one in wire.server.server_state.connections)


def settle(wire: Wire, caller: Caller, *headers: bytes, model: str = SUM) -> Caller:
    """Ask for plain steps until a worker answers them."""
    body = b'{"inputs": %b, "start": true}' % STEP[model]
    request = post(steps_path(model, "settler"), body, *headers)
    for _ in range(MOST_CALLS):
        answer = caller.call(request)
        assert answer.status == 200, answer
        if not wire.ask(lambda: is_here(wire, caller)):
            return caller
    raise AssertionError("no worker takes the connection")


def as_sent(answer: Answer) -> Any:
    """All of it, but the times."""
    headers = [(name, value) for name, value in answer.headers.items() if name != "date"]
    return answer.status, headers, _TIMES.sub(b"", answer.body)


@dataclass
class Twins:
    """A server with workers and one without, that hold the same sequences."""

    fronted: Wire
    plain: Wire

    def connect(self, *headers: bytes, model: str = SUM) -> TwinCallers:
        """With `headers` in each request. A worker has the connection to the first."""
        callers = TwinCallers(self, self.fronted.connect(), self.plain.connect(), headers)
        callers.settle(model)
        return callers


@dataclass
class TwinCallers:
    twins: Twins
    fronted: Caller
    plain: Caller
    headers: tuple[bytes, ...] = ()

    def settle(self, model: str = SUM) -> None:
        for wire, caller in ((self.twins.fronted, self.fronted), (self.twins.plain, self.plain)):
            if wire is self.twins.plain:
                body = b'{"inputs": %b, "start": true}' % STEP[model]
                assert caller.call(post(steps_path(model, "settler"), body, *self.headers)).status == 200
            else:
                settle(wire, caller, *self.headers, model=model)

    def call(self, *requests: bytes) -> Answer:
        """The answer that both give to this, as it is sent."""
        for caller in (self.fronted, self.plain):
            caller.send(*requests)
        return self.receive()

    def receive(self) -> Answer:
        answers = self.fronted.receive(), self.plain.receive()
        assert as_sent(answers[0]) == as_sent(answers[1]), answers
        return answers[0]

    def step(self, path: str, body: bytes, *more: bytes) -> Answer:
        return self.call(post(path, body, *self.headers, *more))

    @property
    def is_away(self) -> bool:
        """Does a worker have it?"""
        wire = self.twins.fronted
        return not wire.ask(lambda: is_here(wire, self.fronted))

    def close(self) -> None:
        self.fronted.close()
        self.plain.close()


@contextmanager
def open_twins(repository: Path, folder: Path | None = None, **settings: Any) -> Iterator[Twins]:
    """With `folder`, states are kept in files there."""
    stores = [f"sqlite:///{folder / name}" if folder else "memory" for name in ("fronted", "plain")]
    with (
        open_wire(repository, workers=2, state_store=stores[0], **settings) as fronted,
        open_wire(repository, state_store=stores[1], **settings) as plain,
    ):
        yield Twins(fronted, plain)


def worker_processes() -> set[int]:
    """Those of this process, and what has ended without being waited for."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            is_worker = state == "Z" or b"service.workers" in (folder / "cmdline").read_bytes()
            if int(parent) == os.getpid() and is_worker:
                found.add(int(folder.name))
    return found


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """These workers do nothing meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
    yield
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def wait_until_read(caller: Caller) -> None:
    """Until whoever has the other end has taken all that was sent."""
    mine, its = caller.socket.getsockname()[1], caller.socket.getpeername()[1]
    unread = True
    while unread:
        sockets = _sockets()
        unread = sockets[mine, its].unsent > 0 or sockets[its, mine].unread > 0


def wait_until_left(port: int, name: tuple[str, int]) -> None:
    """Until whoever has the other end of a connection that was closed has closed it too. `port` is the server's."""
    while (port, name[1]) in _sockets():
        pass


@dataclass
class _Socket:
    unsent: int
    unread: int


def _sockets() -> dict[tuple[int, int], _Socket]:
    """Those that are held, of any process, by the ports of this and the other end, as Linux lists them."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        here, there, _, queues, _, _, _, _, inode = line.split()[1:10]
        if inode != "0":
            ports = int(here.split(":")[1], 16), int(there.split(":")[1], 16)
            found[ports] = _Socket(*(int(number, 16) for number in queues.split(":")))
    return found
