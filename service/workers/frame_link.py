"""Frames of many streams on one connection between two processes: each has the number of its stream before it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from struct import Struct
from typing import cast

from service.protocol.frames import HEAD

_NUMBER = Struct("<I")

OnFrame = Callable[[int, bytes], None]
"""Takes the number of a stream, and a whole message of `carousel.v1.binary`."""


class FrameLink(asyncio.Protocol):
    """One end."""

    def __init__(self, on_frame: OnFrame, on_end: Callable[[], None]) -> None:
        """`on_end` is told when the other process is gone."""
        self._on_frame, self._on_end = on_frame, on_end
        self._transport: asyncio.WriteTransport | None = None
        self._rest = b""

    @classmethod
    async def open(cls, sock: socket.socket, on_frame: OnFrame, on_end: Callable[[], None]) -> FrameLink:
        sock.setblocking(False)
        _, link = await asyncio.get_running_loop().create_unix_connection(lambda: cls(on_frame, on_end), sock=sock)
        return link

    def send(self, number: int, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(_NUMBER.pack(number) + frame)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while at + _NUMBER.size + HEAD.size <= end:
            _, length = HEAD.unpack_from(data, at + _NUMBER.size)
            after = at + _NUMBER.size + length
            if after > end:
                break
            self._on_frame(_NUMBER.unpack_from(data, at)[0], data[at + _NUMBER.size : after])
            at = after
        self._rest = data[at:]

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_end()
