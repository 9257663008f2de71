"""A sequence whose state the server holds."""

from __future__ import annotations

from asyncio import Lock
from collections.abc import Awaitable
from datetime import datetime
from types import TracebackType
from typing import TypeVar, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carousel_client.aio.generation import AsyncGeneration
from carousel_client.aio.transport import AsyncTransport
from carousel_client.core.arrays import State
from carousel_client.core.calls import Work
from carousel_client.core.results import Stepped
from carousel_client.core.rollouts import GenerateOptions
from carousel_client.core.sequences import SequenceCalls, StepOptions

T = TypeVar("T")


class AsyncSequence:
    """Made by `AsyncModel.sequence`. Its first call makes sure that it is there; its calls run one after another."""

    def __init__(self, transport: AsyncTransport, calls: SequenceCalls, *, keep: bool) -> None:
        self._transport, self._calls, self._keep = transport, calls, keep
        self._lock = Lock()

    @property
    def id(self) -> str:
        return self._calls.id

    @property
    def position(self) -> int:
        """Steps done; 0 before the first call."""
        return self._calls.position or 0

    @property
    def expires_at(self) -> datetime | None:
        """Until when the server keeps it; each call puts that off. None before the first."""
        return self._calls.expires_at

    async def open(self) -> AsyncSequence:
        """Go on with it where it stands, or begin it. Every other call does so by itself."""
        await self._run(self._calls.open())
        return self

    async def __aenter__(self) -> AsyncSequence:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._run(self._calls.leave(keep=self._keep, failing=error is not None))

    async def step(self, inputs: ArrayLike, **options: Unpack[StepOptions]) -> Stepped:
        """Run the next steps: inputs `(T, F)`, or `(T,)` token ids; outputs `(T, O)`. Options: see StepOptions.

        Numbered, so that a call whose answer was lost is sent again and done once. Raises StepConflict when somebody
        else moved the sequence: `refresh()` goes on from there.
        """
        return await self._run(self._calls.step(inputs, **options))

    async def refresh(self) -> int:
        """Ask the server where it stands, and go on from there."""
        return await self._run(self._calls.refresh())

    @property
    def state(self) -> Awaitable[dict[str, NDArray[np.float32]]]:
        """To be awaited: tensors by name, `(L, H)` each, as the model's card has them. `write_state` sets it."""
        return self._read_state()

    async def write_state(self, state: State | str, step: int | None = None) -> None:
        """Let it stand at a state, or at a state token, after `step` steps: without, as many as now or as the token's.

        Raises StateMoved, and changes nothing, when somebody else moved the sequence.
        """
        await self._run(self._calls.write_state(state, step))

    async def token(self) -> str:
        """Its state, sealed, to go on from at any replica: see `state_token` of AsyncModel.predict and .sequence."""
        return await self._run(self._calls.read_token())

    async def fork(self, id: str | None = None, *, keep: bool = False) -> AsyncSequence:
        """A copy that goes its own way."""
        return AsyncSequence(self._transport, await self._run(self._calls.fork(id)), keep=keep)

    def generate(
        self, inputs: ArrayLike | str, steps: int, *, commit: bool = True, **options: Unpack[GenerateOptions]
    ) -> AsyncGeneration:
        """Go on by itself for `steps` steps after the inputs; `commit=False` leaves it where it stands."""
        return AsyncGeneration(self._transport, self._calls.generate(inputs, steps, commit, **options))

    async def delete(self) -> None:
        """End it."""
        await self._run(self._calls.delete())

    async def _read_state(self) -> dict[str, NDArray[np.float32]]:
        return (await self._run(self._calls.read_state())).state

    async def _run(self, work: Work[T]) -> T:
        async with self._lock:
            return await self._transport.run(work)
