"""The engine's side of a worker's streams: each works as a WebSocket does that speaks `carousel.v1.binary`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog
from starlette.types import Message, Scope

from service.api.call import Call, Service
from service.api.stream_connection import Connection
from service.api.stream_records import same_layout
from service.model_spec import ModelSpec
from service.protocol.frames import BLOCK, HEAD, MAGIC
from service.workers.frame_link import FrameLink

Whose = tuple[str, str]
"""Tenant, model."""

log = structlog.get_logger(__name__)


class LinkStreams:
    """Those of one worker: one for each tenant and model whose steps it sends on."""

    def __init__(self, service: Service, link: FrameLink, on_fault: Callable[[], None]) -> None:
        """`on_fault` is told when one breaks off, whose callers would wait for ever."""
        self._service = service
        self._link = link
        self._on_fault = on_fault
        self._closed = False
        self._streams: dict[int, _Stream] = {}
        self._newest: dict[Whose, tuple[int, ModelSpec]] = {}
        self._most = min(service.settings.max_stream_records, service.settings.max_steps)
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, whose: Whose, spec: ModelSpec) -> int | None:
        """The number of the stream for steps of such a model, if it is open."""
        found = self._newest.get(whose)
        return found[0] if found and same_layout(found[1], spec) else None

    def open(self, whose: Whose, spec: ModelSpec) -> int:
        """Open one, for calls to come in the place of that for another layout. Raises ModelNotFound, ModelNotReady."""
        number = len(self._streams)
        stream = _Stream(number, self._link, self._most)
        call = Call(_scope(*whose), self._service)
        connection = Connection(call, stream.receive, stream.send, binary=True, of_worker=True)
        self._streams[number], self._newest[whose] = stream, (number, spec)
        task = asyncio.create_task(self._serve(connection), name=f"worker's stream {number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return number

    def take(self, number: int, frame: bytes) -> None:
        """A frame of the worker."""
        self._streams[number].put(frame)

    def close(self) -> None:
        """The worker is gone. What it sent is run, as for any caller who leaves a stream."""
        self._closed = True
        for stream in self._streams.values():
            stream.put(None)
        self._streams.clear()
        self._newest.clear()

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
        except Exception:
            log.exception("workers_stream_failed")
        if not self._closed:
            self._on_fault()


class _Stream:
    """`receive` and `send` as ASGI has them for a WebSocket."""

    def __init__(self, number: int, link: FrameLink, most: int) -> None:
        """`most` records, and steps of them, may come together."""
        self._number = number
        self._link = link
        self._most = most
        self._came: deque[bytes | None] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, frame: bytes | None) -> None:
        """None is the end."""
        self._came.append(frame)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        while not self._came:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        frame = self._came.popleft()
        if frame is None:
            return {"type": "websocket.disconnect"}
        return {"type": "websocket.receive", "bytes": self._with_those_alike(frame)}

    def _with_those_alike(self, frame: bytes) -> bytes:
        """What came meanwhile for the same kind of block joins it, so that it runs together. A frame is one block."""
        kind, flags, steps, count = BLOCK.unpack_from(frame, HEAD.size)
        frames = [frame]
        while self._came and (more := self._came[0]) is not None:
            *like, also = BLOCK.unpack_from(more, HEAD.size)
            num_records = count + also
            if like != [kind, flags, steps] or max(num_records, num_records * steps) > self._most:
                break
            count = num_records
            frames.append(more)
            self._came.popleft()
        if len(frames) == 1:
            return frame
        records = b"".join([one[HEAD.size + BLOCK.size :] for one in frames])
        size = HEAD.size + BLOCK.size + len(records)
        return b"".join([HEAD.pack(MAGIC, size), BLOCK.pack(kind, flags, steps, count), records])

    async def send(self, message: Message) -> None:
        if frame := message.get("bytes"):
            self._link.send(self._number, frame)


def _scope(tenant: str, model: str) -> Scope:
    scope: dict[str, Any] = {
        "type": "websocket",
        "path": f"/v1/models/{model}/stream",
        "path_params": {"model": model},
        "tenant": tenant,
        "headers": [],
        "query_string": b"",
    }
    return scope
