"""Many sequences on one WebSocket."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Unpack

from numpy.typing import ArrayLike
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from carousel_client.core.lines import Outcome
from carousel_client.core.links import check_subprotocol, stream_options
from carousel_client.core.models import ModelCalls
from carousel_client.core.results import Stepped
from carousel_client.core.sequences import StepOptions, check_id
from carousel_client.core.streams import Exchange, closed
from carousel_client.errors import CarouselError
from carousel_client.sync.transport import Transport

LOST = (OSError, EOFError, ConnectionClosed, InvalidHandshake)


class Pending:
    """What was sent and will be answered."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._outcome: Outcome = None
        self.done = False

    def result(self) -> Stepped:
        """Waits for it; what else is answered meanwhile is kept for its own. Raises what the server says of it."""
        outcome = self.wait()
        assert outcome is not None, "only a deletion has no outcome"
        return outcome

    def wait(self) -> Stepped | None:
        self._stream.pump(lambda: self.done)
        if isinstance(self._outcome, CarouselError):
            raise self._outcome
        return self._outcome

    def settle(self, outcome: Outcome) -> None:
        self._outcome, self.done = outcome, True


class Stream:
    """Made by `Model.stream`, for one thread. Answers of one sequence come in the order of its steps.

    A sequence goes on where it stands, and begins where there is none. A connection that is lost is made anew when it
    is needed, and everything that was not answered is sent again: by its number no step is done twice or left out.
    """

    def __init__(self, transport: Transport, model: ModelCalls) -> None:
        self._transport, self._model = transport, model
        self._exchange: Exchange | None = None
        self._socket: ClientConnection | None = None
        self._connection = ExitStack()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.drain()
        finally:
            self.close()

    def send(self, id: str, inputs: ArrayLike, **options: Unpack[StepOptions]) -> Pending:
        """Put the next steps of a sequence on their way, inputs `(T, F)` or `(T,)` token ids, and do not wait.

        What is sent before anything is waited for goes out together. Far ahead, it waits for room. Raises InvalidInput.
        """
        exchange, pending = self._opened(), Pending(self)
        exchange.step(check_id(id), inputs, pending.settle, **options)
        self.pump(lambda: exchange.has_room)
        return pending

    def step(self, id: str, inputs: ArrayLike, **options: Unpack[StepOptions]) -> Stepped:
        """The answer to the next steps of a sequence, outputs `(T, O)`."""
        return self.send(id, inputs, **options).result()

    def position(self, id: str) -> int | None:
        """Where the sequence stood after the last answer; None where nothing is known of it yet."""
        return self._opened().position(id)

    def delete(self, id: str) -> None:
        """End a sequence, after what was sent of it."""
        pending = Pending(self)
        self._opened().delete(check_id(id), pending.settle)
        pending.wait()

    def drain(self) -> None:
        """Wait until everything that was sent is answered."""
        if self._exchange is not None:
            exchange = self._exchange
            self.pump(lambda: not exchange.has_work)

    def close(self) -> None:
        """Leave; what is not answered may be carried out all the same. The sequences stay."""
        self._disconnect()
        if self._exchange is not None:
            self._exchange.fail(closed())

    def pump(self, done: Callable[[], bool]) -> None:
        """Send and receive until `done`."""
        while not done():
            exchange = self._opened()
            try:
                socket = self._connected()
                for message in exchange.outgoing():
                    socket.send(message)
                self._receive(socket, exchange)
            except LOST as error:
                self._disconnect()
                self._transport.sleep(exchange.lost(error))
            except CarouselError as error:
                self._disconnect()
                exchange.fail(error)

    def _receive(self, socket: ClientConnection, exchange: Exchange) -> None:
        try:
            message = socket.recv(exchange.seconds_to_wait())
        except TimeoutError:
            return
        exchange.receive(message)

    def _opened(self) -> Exchange:
        if self._exchange is None:
            self._exchange = Exchange(self._transport.run(self._model.card()), self._transport.pace)
        return self._exchange

    def _connected(self) -> ClientConnection:
        if self._socket is None:
            options = stream_options(self._transport.http, self._model, self._transport.timeout)
            self._socket = self._connection.enter_context(connect(**options))
            check_subprotocol(self._socket.subprotocol)
        return self._socket

    def _disconnect(self) -> None:
        self._socket = None
        self._connection.close()
