"""Servers that do not behave, on real sockets, each in threads of its own."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread


class _Listener:
    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        _hang_up(self._socket)
        self._threads[0].join()
        for connection in list(self._open):
            _hang_up(connection)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self._open.append(connection)
                self._start(connection)

    def _run(self, *work: object) -> None:
        thread = Thread(target=work[0], args=work[1:])  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _start(self, connection: socket.socket) -> None:
        raise NotImplementedError


class Script(_Listener):
    """Answers each call with the next of `answers`, as it is; None hangs up without one. Keeps the requests."""

    def __init__(self, answers: list[bytes | None]) -> None:
        self._answers = answers
        self.requests: list[bytes] = []
        super().__init__()

    def _start(self, connection: socket.socket) -> None:
        self._run(self._answer, connection)

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError):
            request = _read_request(connection)
            if request:
                self.requests.append(request)
                answer = self._answers.pop(0)
                if answer is not None:
                    connection.sendall(answer)
        _hang_up(connection)


class CuttingProxy(_Listener):
    """Hands bytes on, and cuts each connection once the server has answered a random number of them."""

    def __init__(self, port: int, least: int, most: int) -> None:
        self._port, self._between = port, (least, most)
        self._random = random.Random(0)
        self.cuts = 0
        super().__init__()

    def _start(self, connection: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._port))
        except OSError:
            _hang_up(connection)
            return
        self._open.append(server)
        for end in (connection, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._run(self._hand_on, connection, server, None)
        self._run(self._hand_on, server, connection, self._random.randint(*self._between))

    def _hand_on(self, source: socket.socket, target: socket.socket, most: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data[:most])
                if most is not None:
                    most -= len(data)
                    if most < 0:
                        self.cuts += 1
                        break
        _hang_up(source)
        _hang_up(target)


@contextmanager
def running(listener: _Listener) -> Iterator[str]:
    try:
        yield listener.address
    finally:
        listener.close()


def answer(status: int, body: str = "", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Told", f"Content-Length: {len(body)}", "Connection: close", *headers, "", body]
    return "\r\n".join(lines).encode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().splitlines() if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
