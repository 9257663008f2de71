"""A server, and a model on it."""

from __future__ import annotations

import asyncio
import random as chance
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Unpack, overload

import httpx
from numpy.typing import ArrayLike, NDArray

from carousel_client.aio.generation import AsyncGeneration
from carousel_client.aio.sequence import AsyncSequence
from carousel_client.aio.stream import AsyncStream
from carousel_client.aio.transport import AsyncTransport
from carousel_client.core.arrays import State
from carousel_client.core.links import http_options
from carousel_client.core.models import ModelCalls, PredictOptions, as_many, for_each, models
from carousel_client.core.results import ModelCard, ModelLine, Position, Prediction
from carousel_client.core.retries import Pace, Retry
from carousel_client.core.rollouts import GenerateOptions
from carousel_client.core.sequences import SequenceCalls


class AsyncClient:
    """A server at `url`. For one event loop.

    timeout: seconds that connecting, and each wait for more of an answer, may take. deadline: seconds after which the
    server is not to begin a call any more, but to answer DeadlineExceeded. retry: when calls are sent again. clock,
    sleep and random: where time and chance come from.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        deadline: float | None = None,
        retry: Retry | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = chance.random,
    ) -> None:
        http = httpx.AsyncClient(**http_options(url, api_key, timeout, deadline))
        self._transport = AsyncTransport(http, Pace(retry or Retry(), clock, random), timeout, sleep)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; sequences stay on the server."""
        await self._transport.http.aclose()

    async def models(self) -> list[ModelLine]:
        """Every model of the server, also those that are not ready, with the reason."""
        return await self._transport.run(models(self._transport.pace))

    def model(self, name: str, version: int | None = None) -> AsyncModel:
        """A model; without a version always the newest that is ready. Nothing is sent."""
        return AsyncModel(self._transport, ModelCalls(self._transport.pace, name, version))


class AsyncModel:
    """Made by `AsyncClient.model`."""

    def __init__(self, transport: AsyncTransport, calls: ModelCalls) -> None:
        self._transport, self._calls = transport, calls

    @property
    def name(self) -> str:
        return self._calls.name

    async def card(self) -> ModelCard:
        """Inputs, outputs, states, metrics, data, limits."""
        return await self._transport.run(self._calls.card())

    @overload
    async def predict(
        self,
        inputs: list[NDArray[Any]],
        *,
        initial_state: Sequence[State | None] | None = None,
        state_token: Sequence[str | None] | None = None,
        **options: Unpack[PredictOptions],
    ) -> list[Prediction]: ...

    @overload
    async def predict(
        self,
        inputs: ArrayLike,
        *,
        initial_state: State | None = None,
        state_token: str | None = None,
        **options: Unpack[PredictOptions],
    ) -> Prediction: ...

    async def predict(
        self, inputs: Any, *, initial_state: Any = None, state_token: Any = None, **options: Unpack[PredictOptions]
    ) -> Prediction | list[Prediction]:
        """Run a whole sequence, inputs `(T, F)` or `(T,)` token ids; or many of any lengths, a list of such arrays.

        Each begins at its `initial_state` or `state_token`, lists of them for many, or at zeros. Outputs `(T, O)`;
        `final_state` and `state_token` go on where it ended, bit for bit. Options: see PredictOptions.
        """
        many = as_many(inputs)
        if many is None:
            found = await self._transport.run(self._calls.predict([inputs], [initial_state], [state_token], **options))
            return found[0]
        states = for_each(initial_state, len(many), "initial_state")
        tokens = for_each(state_token, len(many), "state_token")
        return await self._transport.run(self._calls.predict(many, states, tokens, **options))

    def sequence(
        self,
        id: str | None = None,
        *,
        ttl: float | None = None,
        keep: bool = False,
        initial_state: State | None = None,
        state_token: str | None = None,
    ) -> AsyncSequence:
        """A sequence whose state the server holds: the one with this id, gone on with where it stands, or a new one.

        One that begins now does so from `initial_state` or `state_token`, or zeros, and is kept for `ttl` seconds after
        each call. `async with` deletes it at the end of its block unless `keep`.
        """
        calls = SequenceCalls(self._calls, id, ttl=ttl, initial_state=initial_state, state_token=state_token)
        return AsyncSequence(self._transport, calls, keep=keep)

    async def sequences(self) -> list[Position]:
        """All sequences of this key, by id."""
        return await self._transport.run(self._calls.sequences())

    def generate(
        self,
        inputs: ArrayLike | str,
        steps: int,
        *,
        initial_state: State | None = None,
        state_token: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGeneration:
        """Let the model go on by itself for `steps` steps after the inputs.

        It begins at `initial_state`, `state_token` or zeros. Options: see GenerateOptions.
        """
        return AsyncGeneration(
            self._transport, self._calls.generate(inputs, steps, initial_state, state_token, **options)
        )

    def stream(self) -> AsyncStream:
        """Many sequences on one WebSocket."""
        return AsyncStream(self._transport, self._calls)
