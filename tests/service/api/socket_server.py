"""The server in a thread of the test's process: real sockets, and parts that can be looked at."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop

from service.__main__ import make_config
from service.api.short_steps import ShortSteps
from service.api.short_way import ShortCall, ShortWays
from service.app import App, create_app
from service.server import Server
from service.settings import Settings

LONG_WAY = b"X-Request-Timeout-Ms: 60000\r\n"
"""A header that changes nothing, and that the short way leaves to the long one."""


class CountedSteps(ShortSteps):
    """Knows how many calls went the short way."""

    taken = 0

    def begin(self, call: ShortCall) -> bool:
        taken = super().begin(call)
        self.taken += taken
        return taken


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def without_times(self) -> tuple[int, dict[str, str], bytes]:
        """All that two servers must answer alike."""
        headers = {name: value for name, value in self.headers.items() if name != "date"}
        return self.status, headers, re.sub(rb'"expires_at":"[^"]*"', b"", self.body)


@dataclass
class Caller:
    """One connection."""

    socket: socket.socket
    _rest: bytes = field(default=b"", init=False)

    def send(self, *requests: bytes) -> None:
        self.socket.sendall(b"".join(requests))

    def receive(self) -> Answer:
        """The next answer. Raises EOFError when the connection ends before it."""
        while b"\r\n\r\n" not in self._rest:
            self._read()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = dict(one.split(": ", 1) for one in fields)
        length = int(headers.get("content-length", 0))
        while len(self._rest) < length:
            self._read()
        body, self._rest = self._rest[:length], self._rest[length:]
        return Answer(int(line.split()[1]), headers, body)

    def call(self, *requests: bytes) -> Answer:
        self.send(*requests)
        return self.receive()

    def is_closed(self) -> bool:
        """Wait for the end of the connection; False if something else comes."""
        try:
            return not self._rest and not self.socket.recv(1)
        except ConnectionError:
            return True

    def close(self) -> None:
        self.socket.close()

    def _read(self) -> None:
        piece = self.socket.recv(65536)
        if not piece:
            raise EOFError(self._rest)
        self._rest += piece


@dataclass
class Wire:
    app: App
    steps: CountedSteps
    server: Server
    loop: asyncio.AbstractEventLoop
    port: int
    callers: list[Caller] = field(default_factory=list)

    @property
    def num_running(self) -> int:
        return int(self.app.state.service.num_running)

    def connect(self, *, receive_buffer: int | None = None) -> Caller:
        connection = socket.socket()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is sent apart arrives apart
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", self.port))
        caller = Caller(connection)
        self.callers.append(caller)
        return caller

    def ask(self, function: Callable[[], Any]) -> Any:
        """Call `function` in the server's thread, between two of its callbacks."""

        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Look after each round of the server's loop. Fails by the test's own time limit."""

        async def look() -> None:
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(look(), self.loop).result(30)

    def wait_until_done(self) -> None:
        """Until no call is under way: of one that was answered the server may have something left to do."""
        self.wait_until(lambda: self.num_running == 0)

    def wait_until_taken(self) -> None:
        """Until the server has taken every connection made before, and knows of every one that was closed."""
        connections = self.server.server_state.connections
        with self.connect().socket as last:  # they are taken in the order they were made
            last.sendall(get("/health/live"))
            assert last.recv(1)
            num_open = sum(caller.socket.fileno() >= 0 for caller in self.callers)
            self.wait_until(lambda: len(connections) <= num_open)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The server does nothing meanwhile: what is sent now is read at once afterwards."""
        holds, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            holds.set()
            go_on.wait(30)

        self.loop.call_soon_threadsafe(hold)
        holds.wait(30)
        try:
            yield
        finally:
            go_on.set()

    def metric(self, line: str) -> float:
        """Value of a line of /metrics, 0 where there is none."""
        page = self.ask(self.app.state.service.metrics.render).decode()
        return next((float(one.rsplit(" ", 1)[1]) for one in page.splitlines() if one.startswith(line + " ")), 0.0)


@contextmanager
def open_wire(repository: Path, *, keep_alive_seconds: float = 60.0, **settings: Any) -> Iterator[Wire]:
    """Ends as a server does that is told to stop."""
    opened: list[Wire] = []
    ready = threading.Event()

    async def serve() -> None:
        app = create_app(Settings(model_repository=repository, **settings))
        steps = CountedSteps(app.state.service, app.edge)
        ways = ShortWays(app.state.service, app.edge, [steps])
        config = make_config(app, app.state.service.settings, ways)
        config.timeout_keep_alive = cast("int", keep_alive_seconds)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # it is soon known who does not read
            server = Server(config, app.state.service, ways, ready.set)
            port = listener.getsockname()[1]
            opened.append(Wire(app, steps, server, asyncio.get_running_loop(), port))
            async with app.router.lifespan_context(app):
                await server.serve(sockets=[listener])

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(60)
        yield opened[0]
    finally:
        for wire in opened:
            for caller in wire.callers:
                caller.close()
            wire.server.should_exit = True
        thread.join(60)


def post(path: str, body: bytes, *more: bytes) -> bytes:
    """A request; `more` are header lines."""
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (path.encode(), len(body))
    return head + b"".join(more) + b"\r\n" + body


def get(path: str, *more: bytes) -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path.encode(), b"".join(more))


def steps_path(model: str, sequence_id: str) -> str:
    return f"/v1/models/{model}/sequences/{sequence_id}/steps"
