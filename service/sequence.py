"""One sequence: what the server holds of a stream between its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.engine.request import Array, Outputs, Result, State
from service.errors import CarouselError, NotStreamable, SequenceGone, StepConflict
from service.registry import LoadedModel
from service.replay import Replays
from service.stores.store import Key
from service.turns import Turns

OnEnd = Callable[[Result | CarouselError], None]
"""Told how a call ended."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """One stream of steps whose state the server holds. Times are seconds since the epoch."""

    key: Key
    model: LoadedModel
    slot: int
    """Its row in the arena, while it is resident."""
    ttl_seconds: float
    created_at: float
    last_used_at: float
    tentative: bool = False
    """Begun by a call's `start`, and none of its calls has succeeded yet: it ends with the last of them that fails."""
    turns: Turns | None = None
    """Of the calls under way."""
    steps_queued: int = 0
    replays: Replays | None = None
    before: State | None = None
    """The state before the call under way, if that has a large answer."""
    watched: int = 0
    """What Leases knows it by."""
    revision: int = 0
    """Of the committed record, where every step is committed to a store."""
    left_at: int | None = None
    """The step that it stood at when its row was given up; None while it is resident."""
    end_reason: str | None = None
    """Why it ended; one that gave up its row without a reason can be found again."""

    @property
    def step(self) -> int:
        """Steps done since it began. The engine counts them, so that step and state move together."""
        return self.model.engine.position(self.slot) if self.left_at is None else self.left_at

    @property
    def is_busy(self) -> bool:
        """Are calls under way?"""
        return self.turns is not None and self.turns.busy

    def step_conflict(self, named: int) -> StepConflict:
        """What to tell a caller who named another step than it stands at."""
        at = self.step
        return StepConflict(
            f"The sequence stands at step {at}, not {named}. Go on from there.",
            expected_step=at,
            expected=at,
            received=named,
        )

    def make_turns(self) -> Turns:
        self.turns = self.turns or Turns()
        return self.turns

    @property
    def id(self) -> str:
        return self.key[2]

    @property
    def expires_at(self) -> float:
        return self.last_used_at + self.ttl_seconds


@dataclass(slots=True)
class Steps:
    """What one call asks of a sequence; see `Sequences.step`."""

    inputs: Array
    step: int | None
    outputs: Outputs
    return_state: bool
    commit: bool
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a list of sequences."""

    id: str
    model: str
    version: int
    step: int
    expires_at: float


def gone(reason: str) -> SequenceGone:
    return SequenceGone(f"The sequence has ended: {reason}. Create it again to begin from zeros.", reason=reason)


def require_streaming(model: LoadedModel) -> None:
    """Raises NotStreamable for a model that must see a sequence whole."""
    if not model.spec.streaming:
        raise NotStreamable(
            f"Model {model.name!r} is bidirectional or otherwise needs the whole sequence at once, so it cannot be "
            f"stepped. Send whole sequences to /v1/models/{model.name}/predict."
        )
