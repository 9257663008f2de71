"""One WebSocket without a framework: whole frames out, whole messages in."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from struct import Struct

from benchmarks.payloads import API_KEY

TEXT, BINARY = 0x81, 0x82
"""First byte of a frame that is a whole message."""
_SHORT, _MIDDLE, _LONG = Struct(">BBI"), Struct(">BBHI"), Struct(">BBQI")


class StreamConnection:
    """Its frames are masked by zero, which leaves them as they are: masking would be the generator's work."""

    def __init__(self, port: int, model: str, subprotocol: str, epoll: select.epoll) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = self.sock.fileno()
        self._epoll = epoll
        self._in = bytearray()
        self._out = memoryview(b"")
        self._shake_hands(model, subprotocol)
        self.sock.setblocking(False)
        epoll.register(self.fd, select.EPOLLIN)

    def write(self, frames: bytes) -> None:
        sent = self.sock.send(frames)
        if sent < len(frames):
            self._out = memoryview(frames)[sent:]
            self._epoll.modify(self.fd, select.EPOLLIN | select.EPOLLOUT)

    def write_rest(self) -> None:
        self._out = self._out[self.sock.send(self._out) :]
        if not self._out:
            self._epoll.modify(self.fd, select.EPOLLIN)

    def read(self) -> Iterator[bytes]:
        """The messages that are whole. Raises ConnectionError at a frame that is not part of one."""
        data = self.sock.recv(1 << 20)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._in += data
        at = 0
        while (found := self._frame_at(at)) is not None:
            begin, end = found
            kind = self._in[at]
            if kind not in (TEXT, BINARY):
                raise ConnectionError(f"the server sent {kind:#x}: {bytes(self._in[begin:end])!r}")
            yield bytes(self._in[begin:end])
            at = end
        del self._in[:at]

    def close(self) -> None:
        self._epoll.unregister(self.fd)
        self.sock.close()

    def _frame_at(self, at: int) -> tuple[int, int] | None:
        """Where the payload begins and ends, once it is there."""
        if len(self._in) < at + 2:
            return None
        length, begin = self._in[at + 1], at + 2
        if length >= 126:
            wide = 2 if length == 126 else 8
            if len(self._in) < begin + wide:
                return None
            length, begin = int.from_bytes(self._in[begin : begin + wide], "big"), begin + wide
        return (begin, begin + length) if len(self._in) >= begin + length else None

    def _shake_hands(self, model: str, subprotocol: str) -> None:
        self.sock.sendall(
            (
                f"GET /v1/models/{model}/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                f"Sec-WebSocket-Protocol: {subprotocol}\r\nX-API-Key: {API_KEY}\r\n\r\n"
            ).encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = self.sock.recv(1)
            if not piece or len(head) > 4096:
                raise ConnectionError(f"no handshake: {head!r}")
            head += piece
        if not head.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(f"the stream was refused: {head!r}")


def frame(kind: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return _SHORT.pack(kind, 0x80 | size, 0) + payload
    return (_MIDDLE.pack(kind, 0xFE, size, 0) if size < 65536 else _LONG.pack(kind, 0xFF, size, 0)) + payload
