"""One keep-alive HTTP/1.1 connection without a framework: bytes out, whole answers in."""

from __future__ import annotations

import select
import socket

_LENGTH = b"content-length: "


class Connection:
    """Non-blocking, one request under way at a time."""

    __slots__ = ("_epoll", "_in", "_out", "fd", "sock")

    def __init__(self, port: int, epoll: select.epoll) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.fd = self.sock.fileno()
        self._epoll = epoll
        self._in = b""
        self._out = memoryview(b"")
        epoll.register(self.fd, select.EPOLLIN)

    def write(self, request: bytes) -> None:
        sent = self.sock.send(request)
        if sent < len(request):
            self._out = memoryview(request)[sent:]
            self._epoll.modify(self.fd, select.EPOLLIN | select.EPOLLOUT)

    def write_rest(self) -> None:
        """The socket can take more of a long request."""
        self._out = self._out[self.sock.send(self._out) :]
        if not self._out:
            self._epoll.modify(self.fd, select.EPOLLIN)

    def read(self) -> bytes:
        """The whole answer, or nothing yet."""
        data = self.sock.recv(262144)
        if not data:
            raise ConnectionError("the server closed the connection")
        if self._in:
            data = self._in + data
        if is_whole(data):
            self._in = b""
            return data
        self._in = data
        return b""

    def close(self) -> None:
        self._epoll.unregister(self.fd)
        self.sock.close()


def is_whole(data: bytes) -> bool:
    """Does `data` reach to the end of the answer that its Content-Length promises?"""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    begin = data.find(_LENGTH, 0, end)
    if begin < 0:
        raise ConnectionError("an answer without a content-length")
    begin += len(_LENGTH)
    return len(data) >= end + 4 + int(data[begin : data.find(b"\r", begin)])


def body_of(answer: bytes) -> bytes:
    return answer[answer.find(b"\r\n\r\n") + 4 :]
