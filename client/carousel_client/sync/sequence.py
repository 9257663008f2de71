"""A sequence whose state the server holds."""

from __future__ import annotations

from datetime import datetime
from threading import Lock
from types import TracebackType
from typing import TypeVar, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carousel_client.core.arrays import State
from carousel_client.core.calls import Work
from carousel_client.core.results import Stepped
from carousel_client.core.rollouts import GenerateOptions
from carousel_client.core.sequences import SequenceCalls, StepOptions
from carousel_client.sync.generation import Generation
from carousel_client.sync.transport import Transport

T = TypeVar("T")


class Sequence:
    """Made by `Model.sequence`. Its first call makes sure that it is there; its calls run one after another."""

    def __init__(self, transport: Transport, calls: SequenceCalls, *, keep: bool) -> None:
        self._transport, self._calls, self._keep = transport, calls, keep
        self._lock = Lock()

    @property
    def id(self) -> str:
        return self._calls.id

    @property
    def position(self) -> int:
        """Steps done."""
        self.open()
        return self._calls.position or 0

    @property
    def expires_at(self) -> datetime | None:
        """Until when the server keeps it; each call puts that off."""
        self.open()
        return self._calls.expires_at

    def open(self) -> Sequence:
        """Go on with it where it stands, or begin it. Every other call does so by itself."""
        self._run(self._calls.open())
        return self

    def __enter__(self) -> Sequence:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._calls.leave(keep=self._keep, failing=error is not None))

    def step(self, inputs: ArrayLike, **options: Unpack[StepOptions]) -> Stepped:
        """Run the next steps: inputs `(T, F)`, or `(T,)` token ids; outputs `(T, O)`. Options: see StepOptions.

        Numbered, so that a call whose answer was lost is sent again and done once. Raises StepConflict when somebody
        else moved the sequence: `refresh()` goes on from there.
        """
        return self._run(self._calls.step(inputs, **options))

    def refresh(self) -> int:
        """Ask the server where it stands, and go on from there."""
        return self._run(self._calls.refresh())

    @property
    def state(self) -> dict[str, NDArray[np.float32]]:
        """Tensors by name, `(L, H)` each, as the model's card has them; set it, or use `write_state`."""
        return self._run(self._calls.read_state()).state

    @state.setter
    def state(self, state: State) -> None:
        self.write_state(state)

    def write_state(self, state: State | str, step: int | None = None) -> None:
        """Let it stand at a state, or at a state token, after `step` steps: without, as many as now or as the token's.

        Raises StateMoved, and changes nothing, when somebody else moved the sequence.
        """
        self._run(self._calls.write_state(state, step))

    def token(self) -> str:
        """Its state, sealed, to go on from at any replica: see `state_token` of Model.predict and Model.sequence."""
        return self._run(self._calls.read_token())

    def fork(self, id: str | None = None, *, keep: bool = False) -> Sequence:
        """A copy that goes its own way."""
        return Sequence(self._transport, self._run(self._calls.fork(id)), keep=keep)

    def generate(
        self, inputs: ArrayLike | str, steps: int, *, commit: bool = True, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Go on by itself for `steps` steps after the inputs; `commit=False` leaves it where it stands."""
        return Generation(self._transport, self._calls.generate(inputs, steps, commit, **options))

    def delete(self) -> None:
        """End it."""
        self._run(self._calls.delete())

    def _run(self, work: Work[T]) -> T:
        with self._lock:
            return self._transport.run(work)
