"""Streams to a real server, as a client opens them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests.service import wire
from tests.service.api.clients import SUM

UNREAD_ROWS, UNREAD_STEPS = 30, 2000
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


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient(verify=False) as http:
        return await http.get(url)


async def frames_read(address: str) -> float:
    """Binary ones, of all streams."""
    line = 'carousel_stream_frames_total{form="binary"} '
    return float((await get(f"{address}/metrics")).text.split(line)[1].split()[0])


@asynccontextmanager
async def unread_stream(
    address: str, num_frames: int
) -> AsyncIterator[tuple[ClientConnection, int, asyncio.Task[None], float]]:
    """A stream on which so many frames are sent, of 480 kB and with as long an answer, and no answer is read yet.

    Also the task that sends them, and how many the server had read when it read no more.
    """
    async with open_stream(address, subprotocols=(BINARY,), max_queue=1) as stream:
        await stream.send(wire.message(wire.open_block([(n, f"unread-{n}") for n in range(UNREAD_ROWS)])))
        await hear_records(stream, UNREAD_ROWS)
        rows = [(n, 0, None, [1.0] * (2 * UNREAD_STEPS)) for n in range(UNREAD_ROWS)]
        frame = wire.message(wire.step_block(rows, steps=UNREAD_STEPS, flags=wire.START))

        async def send() -> None:
            for _ in range(num_frames):
                await stream.send(frame)

        before = await frames_read(address)
        sender = asyncio.create_task(send())
        looks, read = 0, 0.0
        while looks < 10 or not read:  # in a row, at which nothing more was read
            last, read = read, await frames_read(address) - before
            looks = looks + 1 if read == last else 0
        try:
            yield stream, num_frames, sender, read
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
