"""Streams to a real server, as a client opens them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.service import wire
from tests.service.api.clients import SUM

TEXT, BINARY = "carousel.v1.json", "carousel.v1.binary"


@asynccontextmanager
async def open_stream(
    address: str, model: str = SUM, *, subprotocols: tuple[str, ...] = (TEXT,), query: str = "", **options: Any
) -> AsyncIterator[ClientConnection]:
    url = f"{address.replace('http', 'ws', 1)}/v1/models/{model}/stream{query}"
    options = {"compression": None, "max_size": None, "proxy": None, "close_timeout": 1, **options}
    async with connect(url, subprotocols=subprotocols, **options) as stream:  # type: ignore[arg-type]
        yield stream


async def ask(stream: ClientConnection, **frame: Any) -> dict[str, Any]:
    """Send one text frame; the next answer."""
    await stream.send(json.dumps(frame))
    return await hear(stream)


async def hear(stream: ClientConnection) -> dict[str, Any]:
    text = await stream.recv()
    assert isinstance(text, str)
    answer: dict[str, Any] = json.loads(text)
    return answer


async def hear_records(
    stream: ClientConnection, count: int, output_size: int = 2, state_size: int = 2
) -> list[wire.Answer]:
    """The next `count` records, of however many messages."""
    found: list[wire.Answer] = []
    while len(found) < count:
        data = await stream.recv()
        assert isinstance(data, bytes)
        found += wire.answers(data, output_size, state_size)
    assert len(found) == count, found
    return found
