"""A worker: what its parts say to each other and to the engine's process."""

from __future__ import annotations

import asyncio
import socket

from service.model_spec import ModelSpec
from service.workers.channel import Channel, Message
from service.workers.frame_link import FrameLink
from service.workers.front import Connection, Front, Head
from service.workers.limits import FIRST_PATIENCE, Limits
from service.workers.steps_stream import StepsStream
from service.workers.tally import Tally

TELL_SECONDS = 1.0

MAX_PATIENCE = 4096
PAID_OFF_CALLS = 64
"""So many calls here were worth the two ways; after fewer, a connection waits longer before it comes again."""


class Worker:
    """Runs until the engine's process is gone, or has taken everything back."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], StepsStream] = {}
        self._by_number: dict[int, StepsStream] = {}
        self._num_arriving = 0
        self._arrivals: set[asyncio.Task[None]] = set()
        self._front: Front
        self._limits: Limits
        self._tally: Tally | None = None
        self._end = asyncio.Event()

    async def run(self, channel: socket.socket, link: socket.socket) -> None:
        self._channel = Channel(channel, self._hear, self._end.set)
        self._link = await FrameLink.open(link, self._take, self._end.set)
        while not self._end.is_set():
            try:
                await asyncio.wait_for(self._end.wait(), TELL_SECONDS)
            except TimeoutError:
                self._tell()

    def _tell(self) -> None:
        if self._tally is None:
            return
        self._front.tick()
        self._channel.send(Message("told", {**self._tally.take(), "num_connections": self._num_connections}))

    @property
    def _num_connections(self) -> int:
        return len(self._front.connections) + self._num_arriving

    # -- what the engine's process says ------------------------------------------------------------------------------

    def _hear(self, message: Message) -> None:
        if message.kind == "begin":
            self._begin(Limits(**message.fields))
        elif message.kind == "stream":
            self._open_stream(ModelSpec.model_validate_json(message.data), **message.fields)
        elif message.kind == "connection" and message.connection is not None:
            self._num_arriving += 1
            task = asyncio.create_task(self._arrive(message.connection, message.data, **message.fields))
            self._arrivals.add(task)
            task.add_done_callback(self._arrivals.discard)
        elif message.kind == "leave":
            self._front.leave()
            self._look_whether_all_left()

    def _begin(self, limits: Limits) -> None:
        self._limits = limits
        self._tally = Tally(limits.second_bounds)
        self._front = Front(limits, self._tally, self._ask, self._give_back, self._look_whether_all_left)
        self._channel.send(Message("ready"))

    def _open_stream(self, spec: ModelSpec, number: int, tenant: str, model: str) -> None:
        stream = StepsStream(model, spec, self._limits, lambda frame: self._link.send(number, frame))
        self._streams[tenant, model] = self._by_number[number] = stream

    async def _arrive(self, descriptor: int, data: bytes, patience: int) -> None:
        sock = socket.socket(fileno=descriptor)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(self._front, data, patience), sock
            )
        except OSError:  # its caller is gone
            sock.close()
        finally:
            self._num_arriving -= 1
            self._look_whether_all_left()

    def _take(self, number: int, frame: bytes) -> None:
        self._by_number[number].take(frame)

    # -- what it says ------------------------------------------------------------------------------------------------

    def _ask(self, connection: Connection, head: Head, body: bytes) -> bool:
        stream = self._streams.get((head.tenant, head.model))
        return stream is not None and stream.ask(connection, head.sequence_id, body)

    def _give_back(self, descriptor: int, data: bytes, patience: int, num_calls: int) -> None:
        patience = FIRST_PATIENCE if num_calls >= PAID_OFF_CALLS else min(2 * patience, MAX_PATIENCE)
        self._channel.send(Message("connection", {"patience": patience}, data, descriptor))
        self._look_whether_all_left()

    def _look_whether_all_left(self) -> None:
        asyncio.get_running_loop().call_soon(self._say_when_all_left)

    def _say_when_all_left(self) -> None:
        """Connections that leave end a moment after they said so."""
        if self._front.leaving and not self._num_connections:
            self._tell()
            self._channel.send(Message("left"))
