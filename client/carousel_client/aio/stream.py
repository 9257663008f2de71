"""Many sequences on one WebSocket."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Unpack

from numpy.typing import ArrayLike
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from carousel_client.aio.transport import AsyncTransport
from carousel_client.core.lines import Outcome
from carousel_client.core.links import check_subprotocol, stream_options
from carousel_client.core.models import ModelCalls
from carousel_client.core.results import Stepped
from carousel_client.core.sequences import StepOptions, check_id
from carousel_client.core.streams import Exchange, closed
from carousel_client.errors import CarouselError, ConnectionFailed

LOST = (OSError, EOFError, ConnectionClosed, InvalidHandshake)


class AsyncStream:
    """Made by `AsyncModel.stream`, to be used in `async with`. Answers of one sequence come in the order of its steps.

    A sequence goes on where it stands, and begins where there is none. A connection that is lost is made anew when it
    is needed, and everything that was not answered is sent again: by its number no step is done twice or left out.
    """

    def __init__(self, transport: AsyncTransport, model: ModelCalls) -> None:
        self._transport, self._model = transport, model
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake, self._settled = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> AsyncStream:
        await self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.drain()
        finally:
            await self.close()

    async def send(self, id: str, inputs: ArrayLike, **options: Unpack[StepOptions]) -> asyncio.Future[Stepped]:
        """Put the next steps of a sequence on their way, inputs `(T, F)` or `(T,)` token ids; await what it gives.

        What is sent before anything is waited for goes out together. Far ahead, it waits for room. Raises InvalidInput.
        """
        exchange = await self._opened()
        while not exchange.has_room:
            await self._change()
        answer: asyncio.Future[Stepped] = asyncio.get_running_loop().create_future()
        exchange.step(check_id(id), inputs, lambda outcome: self._settle(answer, outcome), **options)
        self._wake.set()
        return answer

    async def step(self, id: str, inputs: ArrayLike, **options: Unpack[StepOptions]) -> Stepped:
        """The answer to the next steps of a sequence, outputs `(T, O)`."""
        return await (await self.send(id, inputs, **options))

    def position(self, id: str) -> int | None:
        """Where the sequence stood after the last answer; None where nothing is known of it yet."""
        return self._exchange.position(id) if self._exchange else None

    async def delete(self, id: str) -> None:
        """End a sequence, after what was sent of it."""
        exchange = await self._opened()
        answer: asyncio.Future[Stepped] = asyncio.get_running_loop().create_future()
        exchange.delete(check_id(id), lambda outcome: self._settle(answer, outcome))
        self._wake.set()
        await answer

    async def drain(self) -> None:
        """Wait until everything that was sent is answered."""
        while self._exchange is not None and self._exchange.has_work:
            await self._change()

    async def close(self) -> None:
        """Leave; what is not answered may be carried out all the same. The sequences stay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._exchange is not None:
            self._exchange.fail(closed())

    def _settle(self, answer: asyncio.Future[Stepped], outcome: Outcome) -> None:
        self._settled.set()
        if answer.done():  # its caller waits no more
            return
        if isinstance(outcome, CarouselError):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)  # type: ignore[arg-type]

    async def _change(self) -> None:
        """Wait until something is settled."""
        self._settled.clear()
        await self._settled.wait()

    async def _opened(self) -> Exchange:
        if self._exchange is None:
            card = await self._transport.run(self._model.card())
            self._exchange = self._exchange or Exchange(card, self._transport.pace)
        if self._task is None:
            self._task = asyncio.create_task(self._serve(self._exchange))
        return self._exchange

    async def _serve(self, exchange: Exchange) -> None:
        """One connection after another, as long as there is anything to do."""
        while True:
            while not exchange.has_work:
                await self._woken(None)
            try:
                options = stream_options(self._transport.http, self._model, self._transport.timeout)
                async with connect(**options) as socket:
                    check_subprotocol(socket.subprotocol)
                    await self._converse(socket, exchange)
            except LOST as error:
                await self._transport.sleep(exchange.lost(error))
            except Exception as error:
                exchange.fail(error if isinstance(error, CarouselError) else ConnectionFailed(repr(error)))

    async def _converse(self, socket: ClientConnection, exchange: Exchange) -> None:
        """Until the connection is lost, which raises."""
        reader = asyncio.create_task(self._read(socket, exchange))
        try:
            while not reader.done():
                for message in exchange.outgoing():
                    await socket.send(message)
                await self._woken(exchange.seconds_to_wait())
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, socket: ClientConnection, exchange: Exchange) -> None:
        try:
            while True:
                exchange.receive(await socket.recv())
                self._wake.set()
        finally:
            self._wake.set()

    async def _woken(self, seconds: float | None) -> None:
        """Wait until there may be something to send."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()
