"""Messages and open connections between the engine's process and a worker, in order, over a pair of local sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

MAX_INLINE_BYTES = 32_768
"""A longer message goes as a file in memory: a packet is bounded by the buffer of its socket."""

RETRY_SECONDS = 0.01
"""After the system had no room for one more descriptor on its way."""

_INLINE, _IN_FILE = b"i", b"f"


@dataclass(slots=True)
class Message:
    """`connection` is an open socket's descriptor, and whoever holds the message closes it.

    None in a message that came for a connection: this process had no descriptor left, and the system hung up.
    """

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""
    connection: int | None = None


def channel_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    """One end. What is sent waits until the other end takes it."""

    def __init__(self, sock: socket.socket, on_message: Callable[[Message], None], on_end: Callable[[], None]) -> None:
        """On the running loop. `on_end` is told when the other process is gone."""
        sock.setblocking(False)
        self._sock = sock
        self._on_message, self._on_end = on_message, on_end
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._closed = False
        self._loop.add_reader(sock.fileno(), self._read)

    def send(self, message: Message) -> None:
        """Takes the connection over: this process closes its descriptor once it is sent."""
        try:
            packet, descriptors = _pack(message)
        except OSError:  # no descriptor is left for the file
            if message.connection is None:
                raise
            _close([message.connection])  # its caller may call again
            return
        if self._closed:
            _close(descriptors)
            return
        self._waiting.append((packet, descriptors))
        if len(self._waiting) == 1:
            self._write()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        for _, descriptors in self._waiting:
            _close(descriptors)
        self._waiting.clear()
        self._sock.close()

    def _write(self) -> None:
        while self._waiting and not self._closed:
            packet, descriptors = self._waiting[0]
            try:
                socket.send_fds(self._sock, [packet], descriptors)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock.fileno(), self._write)
                return
            except OSError as error:
                if isinstance(error, ConnectionError):
                    return  # the reader meets the end, and tells
                self._loop.call_later(RETRY_SECONDS, self._write)
                return
            self._waiting.popleft()
            _close(descriptors)
        if not self._closed:
            self._loop.remove_writer(self._sock.fileno())

    def _read(self) -> None:
        while not self._closed:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._sock, MAX_INLINE_BYTES + 1, 2)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                packet, descriptors = b"", []
            if not packet:
                self.close()
                self._on_end()
                return
            if packet != _IN_FILE or descriptors:
                self._on_message(_unpack(packet, descriptors))


def _pack(message: Message) -> tuple[bytes, list[int]]:
    packet = msgspec.msgpack.encode((message.kind, message.fields, message.data))
    descriptors = [] if message.connection is None else [message.connection]
    if len(packet) <= MAX_INLINE_BYTES:
        return _INLINE + packet, descriptors
    file = os.memfd_create("carousel")
    with os.fdopen(os.dup(file), "wb") as writer:
        writer.write(packet)
    return _IN_FILE, [file, *descriptors]


def _unpack(packet: bytes, descriptors: list[int]) -> Message:
    body = packet[1:]
    if packet == _IN_FILE:
        with os.fdopen(descriptors.pop(0), "rb") as reader:
            reader.seek(0)
            body = reader.read()
    kind, fields, data = msgspec.msgpack.decode(body)
    return Message(kind, fields, data, descriptors[0] if descriptors else None)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
