"""An HTTP caller that knows what happened to its call: answered, refused, or lost on the way there or back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


class Refused(Exception):
    """Nobody listens. The call did not leave."""


class Lost(Exception):
    """The connection broke before the answer was there: the call ran, or it did not."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    document: Any


class Caller:
    """One connection at a time, to the first of `ports` that takes it."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = list(ports)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def call(self, method: str, path: str, document: Any = None, headers: str = "") -> Answer:
        """Raises Refused, Lost."""
        body = b"" if document is None else json.dumps(document).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        if self._streams and self._streams[0].at_eof():
            await self.close()  # by the server, while it was not in use
        reader, writer = self._streams or await self._connect()
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            answer = await _read_answer(reader)
        except (OSError, EOFError) as error:
            await self.close()
            raise Lost from error
        if answer.headers.get("connection") == "close":
            await self.close()
        return answer

    async def turn_away(self) -> None:
        """Another port first from now on."""
        if len(self._ports) > 1:
            await self.close()
            self._ports.append(self._ports.pop(0))

    async def close(self) -> None:
        if self._streams:
            _, writer = self._streams
            self._streams = None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in self._ports:
            with suppress(OSError):
                self._streams = await asyncio.open_connection("127.0.0.1", self._ports[0])
                return self._streams
            await self.turn_away()
        raise Refused


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    """Raises EOFError, OSError."""
    head = await reader.readuntil(b"\r\n\r\n")
    line, *fields = head.decode().rstrip().split("\r\n")
    headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(line.split()[1]), headers, json.loads(body) if body else None)
