"""Plain data that moves through the engine: a Request waits, a Batch runs, a Result goes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from service.errors import CarouselError

Array = NDArray[Any]
"""Inputs: float32, or int64 for token models."""
State = tuple[NDArray[np.float32], ...]
"""One sequence's recurrent tensors in the order of the spec, each without its batch axis: `(L, H)` float32."""
Saved = Any
"""One row's state, in the form that the arena saves it in: opaque to all others."""
Batched = Any
"""States of many rows, in the form that the arena gathers and its runner takes and gives: opaque to all others."""

Outputs = Literal["all", "last", "none"]

log = structlog.get_logger(__name__)

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
    arrived_at: float
    """Engine clock, seconds."""
    on_end: Callable[[Request], None]
    """Told once, when there is a `result` or an `error`. What it raises is logged, and concerns no other request."""
    outputs: Outputs = "all"
    return_state: bool = False
    commit: bool = True
    """False: the row is put back as it was once the outputs are known."""
    deadline: float | None = None
    """Engine clock, seconds. Nothing is run or kept after it."""
    tenant: str = ""
    at: int | None = None
    """Steps that the row must have behind it when this one begins; None is any number."""
    owner: Any = None
    """Whose row it is, for whoever commits its end; None: it is nobody's, and there is nothing to commit."""
    steps_done: int = 0
    chunks: list[NDArray[np.float32]] | None = None
    """Outputs of the chunks before the last, if there are any."""
    undo: Saved | None = None
    """The row's state before the first chunk, kept while it may have to be put back."""
    result: Result | None = None
    error: CarouselError | None = None
    gone: bool = False
    """Set when the caller has gone, or one of those that it stands for: do not begin, or put the row back after the
    chunk that is running."""
    left: asyncio.Future[None] | None = None
    """Of a caller who has gone and waits until the row is quiet, and as it was."""
    alone: bool = False
    """Not to be joined with others: it was, and they failed together."""
    members: tuple[Request, ...] = ()
    """The requests that this one stands for, see coalescing."""
    running: bool = False
    """A chunk of it runs just now, or its end waits to be committed."""
    turn: int = 0
    """Its place in its lane."""
    cost_seconds: float = 0.0
    """What the queue counts for it."""

    @property
    def steps_left(self) -> int:
        return len(self.inputs) - self.steps_done

    @property
    def ended(self) -> bool:
        return self.result is not None or self.error is not None

    def end(self, outcome: Result | CarouselError) -> None:
        """Give it its answer."""
        if isinstance(outcome, CarouselError):
            self.error = outcome
        else:
            self.result = outcome
        if self.left is not None:
            self.left.set_result(None)
        try:
            self.on_end(self)
        except Exception:
            log.exception("end_failed")

    def take_error(self) -> CarouselError:
        """To be raised: its traceback will lead to this request, which must not lead back to it."""
        error, self.error = self.error, None
        assert error is not None, "it has failed"
        return error

    @property
    def due(self) -> float:
        """When it ought to run: the earlier, the sooner its turn."""
        return self.arrived_at + PATIENCE_SECONDS if self.deadline is None else self.deadline


def nobody(request: Request) -> None:
    """The `on_end` of requests whose end somebody waits for, or that others stand for."""


@dataclass(slots=True)
class Batch:
    """Requests, one a row, of which the next `steps` steps run together."""

    requests: list[Request]
    steps: int


@dataclass(slots=True, eq=False)
class Ending:
    """A request that ran to its end and may keep its state, once that is committed."""

    request: Request
    result: Result
    """Of all its steps."""
    answers: list[tuple[Request, Result]]
    """The request itself, or each one that it stands for, with its own result."""
    row: int
    states: Batched
    """Of the whole run; the request's is `row` of it."""
    state: bytes = b""
    """The row's tensors, back to back."""

    @property
    def position(self) -> int:
        """Steps that the row has behind it then."""
        return self.result.position


Commit = Callable[[list[Ending]], Awaitable[list[CarouselError | None]]]
"""Makes ends durable, in one go. An error stands for an end that must not be kept."""
