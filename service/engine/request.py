"""Plain data that moves through the engine: a Request waits, a Batch runs, a Result goes back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""Inputs: float32, or int64 for token models."""
State = tuple[NDArray[np.float32], ...]
"""One sequence's recurrent tensors in the order of the spec, each without its batch axis: `(L, H)` float32."""

Outputs = Literal["all", "last", "none"]

PATIENCE_SECONDS = 1.0
"""A request without a deadline takes its turn as if it had one so long after its arrival."""


@dataclass(slots=True)
class Result:
    """`outputs` is `(T, ...)`, `(1, ...)` or `(0, ...)` float32, as asked; `state` is None unless asked for."""

    outputs: NDArray[np.float32]
    steps: int
    position: int
    """Steps that the row has behind it after these."""
    state: State | None
    replayed: bool = False
    """Answered before, and not run again."""


@dataclass(slots=True, eq=False)
class Request:
    """Steps of one sequence that succeed or fail as a whole.

    `inputs` is `(T, F)` float32 or `(T,)` int64 with T >= 1.
    """

    slot: int
    inputs: Array
    future: asyncio.Future[Result]
    arrived_at: float
    """Engine clock, seconds."""
    outputs: Outputs = "all"
    return_state: bool = False
    commit: bool = True
    """False: the row is put back as it was once the outputs are known."""
    deadline: float | None = None
    """Engine clock, seconds. Nothing is run or kept after it."""
    tenant: str = ""
    steps_done: int = 0
    chunks: list[NDArray[np.float32]] = field(default_factory=list)
    undo: State | None = None
    """The row's state before the first chunk, kept while it may have to be put back."""
    at: int | None = None
    """Steps that the row must have behind it when this one begins; None is any number."""
    result: Result | None = None
    failed: bool = False
    left: asyncio.Future[None] | None = None
    """Set when the caller has gone: told when the row is quiet, and as it was."""
    alone: bool = False
    """Not to be joined with others: it was, and they failed together."""
    members: tuple[Request, ...] = ()
    """The requests that this one stands for, see coalescing."""
    turn: int = 0
    """Its place in its lane."""
    cost_seconds: float = 0.0
    """What the queue counts for it."""

    @property
    def steps_left(self) -> int:
        return len(self.inputs) - self.steps_done

    @property
    def abandoned(self) -> bool:
        """The caller is gone: do not begin, or put the row back after the chunk that is running."""
        if self.members:
            return any(member.abandoned for member in self.members)
        return self.left is not None or self.future.cancelled()

    @property
    def ended(self) -> bool:
        return self.failed or self.result is not None

    @property
    def due(self) -> float:
        """When it ought to run: the earlier, the sooner its turn."""
        return self.arrived_at + PATIENCE_SECONDS if self.deadline is None else self.deadline


@dataclass(slots=True)
class Batch:
    """Requests, one a row, of which the next `steps` steps run together."""

    requests: list[Request]
    steps: int
