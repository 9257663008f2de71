"""The engine's side of the workers: starts them, deals connections out to them, takes connections back."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from service.api.call import Service
from service.api.short_steps import ShortSteps
from service.connection import Connection
from service.errors import CarouselError, WorkerFailed
from service.workers.channel import Channel, Message, channel_pair
from service.workers.frame_link import FrameLink
from service.workers.limits import Limits
from service.workers.link import LinkStreams

START_SECONDS = 30.0
REST_SECONDS = 1.0
"""Before a worker that broke off is started again."""
END_SECONDS = 5.0

LOOK_SECONDS = 1.0
MAX_SILENT_LOOKS = 30
"""A worker tells each second what it did. One that hangs is ended: its callers would wait for ever.

Looks are counted, not seconds, so that the time when this process itself did not run is none of the worker's.
"""

MakeConnection = Callable[[], Connection]

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    channel: Channel
    link: FrameLink
    streams: LinkStreams
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """It has given all its connections back, or is gone."""
    num_connections: int = 0
    """As it told last, and what it was given since."""
    num_silent: int = 0
    """Looks since it said something."""


class Workers:
    """Those of one server."""

    def __init__(self, service: Service, make_connection: MakeConnection, keep_alive_seconds: float) -> None:
        self._service = service
        self._make_connection = make_connection
        settings = service.settings
        self._limits = Limits(
            tenants=service.tenants,
            max_body_bytes=settings.max_body_bytes,
            max_steps=settings.max_steps,
            max_stream_records=settings.max_stream_records,
            max_stream_sequences=settings.max_stream_sequences,
            keep_alive_seconds=keep_alive_seconds,
            second_bounds=service.metrics.http_seconds.labels(ShortSteps.path).bounds,
        )
        self._workers: set[_Worker] = set()
        self._chores: set[asyncio.Task[Any]] = set()
        self._leaving = False
        self._watching: asyncio.Task[None] | None = None

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    async def start(self) -> None:
        """All of them. Raises WorkerFailed where one does not come up."""
        try:
            await asyncio.gather(*(self._start_one() for _ in range(self._service.settings.workers)))
        except WorkerFailed:
            await self.stop()
            raise
        self._watching = asyncio.create_task(self._watch(), name="watch workers")

    def take(self, connection: Connection, data: bytes) -> bool:
        """Hand a connection and what was read of it to the worker that has the fewest. False: it stays here."""
        ready = [worker for worker in self._workers if worker.ready.is_set()]
        if self._leaving or not ready:
            return False
        worker = min(ready, key=lambda worker: worker.num_connections)
        try:
            self._open_stream(worker, *connection.whose)
            descriptor = connection.detach()
        except (CarouselError, OSError):  # the model is gone, or no descriptor is left
            return False
        worker.num_connections += 1
        worker.channel.send(Message("connection", {"patience": connection.patience}, data, descriptor))
        return True

    def leave(self) -> None:
        """Take every connection back, each once its call is answered."""
        self._leaving = True
        for worker in self._workers:
            worker.channel.send(Message("leave"))

    @property
    def are_away(self) -> bool:
        """Is a connection with a worker still? Those on their way back count as calls under way."""
        return not all(worker.left.is_set() for worker in self._workers)

    async def stop(self) -> None:
        self._leaving = True
        if self._watching is not None:
            self._watching.cancel()
        for worker in self._workers:
            worker.channel.close()
            worker.link.close()
        await asyncio.gather(*(asyncio.to_thread(_end, worker.process) for worker in self._workers))
        self._workers.clear()

    # -- one worker --------------------------------------------------------------------------------------------------

    async def _start_one(self) -> None:
        (channel_here, channel_there), (link_here, link_there) = channel_pair(), socket.socketpair()
        with channel_there, link_there:
            descriptors = channel_there.fileno(), link_there.fileno()
            process = subprocess.Popen(  # noqa: ASYNC220 - a fork takes a millisecond, once
                [sys.executable, "-m", "service.workers", *map(str, descriptors)],
                pass_fds=descriptors,
                process_group=0,  # a terminal's Ctrl-C is for the engine's process, which tells the others
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        worker: _Worker
        channel = Channel(channel_here, lambda message: self._hear(worker, message), lambda: self._on_end(worker))
        link = await FrameLink.open(link_here, lambda number, frame: worker.streams.take(number, frame), _nothing)
        worker = _Worker(process, channel, link, LinkStreams(self._service, link, process.kill))
        self._workers.add(worker)
        channel.send(Message("begin", asdict(self._limits)))
        if self._leaving:
            channel.send(Message("leave"))
        try:
            await asyncio.wait_for(worker.ready.wait(), START_SECONDS)
        except TimeoutError:
            process.kill()
            reason = f"A worker did not come up in {START_SECONDS:.0f} s."
        else:
            if worker in self._workers:
                return
            reason = "A worker ended while it came up; its own message stands above."
        await asyncio.to_thread(_end, process)
        raise WorkerFailed(reason)

    def _open_stream(self, worker: _Worker, tenant: str, model: str) -> None:
        """So that the worker can read calls of this tenant to this model, and send them on. Raises ModelNotFound."""
        spec = self._service.registry.get(model).spec
        if worker.streams.find((tenant, model), spec) is None:
            number = worker.streams.open((tenant, model), spec)
            fields = {"number": number, "tenant": tenant, "model": model}
            worker.channel.send(Message("stream", fields, spec.model_dump_json().encode()))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for worker in self._workers:
                worker.num_silent += worker.ready.is_set()
                if worker.num_silent > MAX_SILENT_LOOKS:
                    log.error("worker_hangs", pid=worker.process.pid)
                    worker.process.kill()  # the channel tells of its end

    def _hear(self, worker: _Worker, message: Message) -> None:
        worker.num_silent = 0
        if message.kind == "connection":
            worker.num_connections -= 1
            if message.connection is None:
                return
            self._service.num_running += 1  # whoever drains waits until it is here
            self._do(self._take_back(message.connection, message.data, **message.fields))
        elif message.kind == "told":
            worker.num_connections = message.fields["num_connections"]
            self._count(**message.fields)
        elif message.kind == "ready":
            worker.ready.set()
        elif message.kind == "left":
            worker.left.set()

    async def _take_back(self, descriptor: int, data: bytes, patience: int) -> None:
        """Go on with a connection here, from what was read of it."""
        try:
            connection = self._make_connection()
            connection.resume(data, patience)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, socket.socket(fileno=descriptor)
            )
        except OSError:
            pass  # its caller is gone
        finally:
            self._service.num_running -= 1

    def _count(self, statuses: dict[int, int], counts: list[int], total: float, **_: Any) -> None:
        """Put a worker's calls into the metrics."""
        metrics = self._service.metrics
        for status, times in statuses.items():
            metrics.http_requests.labels(ShortSteps.path, "POST", status).inc(times)
        series = metrics.http_seconds.labels(ShortSteps.path)
        series.counts = [mine + more for mine, more in zip(series.counts, counts, strict=True)]
        series.total += total

    def _on_end(self, worker: _Worker) -> None:
        """It broke off, and its callers' connections with it: they repeat their calls by step number."""
        was_ready = worker.ready.is_set()
        self._workers.discard(worker)
        worker.streams.close()
        worker.link.close()
        worker.ready.set()
        worker.left.set()
        if not self._leaving and was_ready:
            log.error("worker_ended", pid=worker.process.pid)
            self._do(self._start_again(worker))

    async def _start_again(self, worker: _Worker) -> None:
        await asyncio.to_thread(_end, worker.process)
        while True:
            await asyncio.sleep(REST_SECONDS)
            if self._leaving:
                return
            try:
                await self._start_one()
                return
            except WorkerFailed as error:
                log.error("worker_failed", reason=error.message)

    def _do(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends when its channel does."""
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _nothing() -> None:
    """The channel tells of the end."""
