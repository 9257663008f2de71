"""A TCP proxy that loses a share of what passes: requests on their way there, replies on their way back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

CUT_REPLIES, CUT_REQUESTS = 0.12, 0.04


@dataclass
class Proxy:
    """Connects to `target` once `is_up` is set; a connection whose other end breaks breaks too."""

    target: int
    is_up: asyncio.Event
    chance: random.Random
    tally: Counter[str]
    port: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward: asyncio.StreamWriter | None = None
        try:
            with suppress(OSError, EOFError):
                await self.is_up.wait()
                back, onward = await asyncio.open_connection("127.0.0.1", self.target)
                while await self._exchange(reader, writer, back, onward):
                    pass
        finally:
            for end in (writer, onward):
                if end is not None:
                    end.close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamReader,
        onward: asyncio.StreamWriter,
    ) -> bool:
        """Pass a request on and its reply back. False: something was cut, and so is the connection."""
        request = await _message(reader)
        if self.chance.random() < CUT_REQUESTS:
            self.tally["requests cut"] += 1
            onward.write(request[: self.chance.randrange(len(request))])
            return False
        onward.write(request)
        reply = await _message(back)
        self.tally["replies"] += 1
        if self.chance.random() < CUT_REPLIES:
            self.tally["replies cut"] += 1
            writer.write(reply[: self.chance.randrange(len(reply))])
            return False
        writer.write(reply)
        return True


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A whole HTTP message that tells its length. Raises EOFError, OSError."""
    head = await reader.readuntil(b"\r\n\r\n")
    _, found, rest = head.lower().partition(b"content-length:")
    return head + await reader.readexactly(int(rest.split(b"\r\n", 1)[0]) if found else 0)


@asynccontextmanager
async def open_proxy(
    target: int, is_up: asyncio.Event, chance: random.Random, tally: Counter[str]
) -> AsyncIterator[Proxy]:
    proxy = Proxy(target, is_up, chance, tally)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1")
    async with server:
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            for task in proxy.tasks:
                task.cancel()
            await asyncio.gather(*proxy.tasks, return_exceptions=True)
