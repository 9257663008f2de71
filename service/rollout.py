"""The model feeds itself: it reads the given inputs, then what it makes of its own outputs, one piece after the other.

Each piece is a request of its own, so rollouts share batches with each other and with everything else. The state that
comes out has seen all inputs and everything generated. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from secrets import randbits
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from service.engine.engine import Engine
from service.engine.request import Array, Outputs, State
from service.errors import QueueFull
from service.sampling import Sampler, Stops, log_odds
from service.sequence import Sequence
from service.sequences import Sequences
from service.stores.store import NUM_ANSWERS

SEED_BITS = 53
"""Every JSON reader keeps such a seed exactly."""


class Feed(Protocol):
    """Makes the next inputs of an output."""

    @property
    def ended(self) -> bool:
        """Is nothing more to be generated?"""

    def follow(self, output: NDArray[np.float32]) -> Array:
        """The inputs after the output `(O,)`: `(n, F)` float32 or `(n,)` int64, n >= 1."""


class TokenFeed:
    """Draws token after token, up to `steps` or to a stop."""

    def __init__(self, sampler: Sampler, stops: Stops, steps: int, *, are_probabilities: bool = False) -> None:
        self._sampler = sampler
        self._stops = stops
        self._steps_left = steps
        self._are_probabilities = are_probabilities
        self.stopped = False

    @property
    def ended(self) -> bool:
        return self.stopped or not self._steps_left

    def follow(self, output: NDArray[np.float32]) -> Array:
        token = self._sampler.draw(log_odds(output) if self._are_probabilities else output)
        self._steps_left -= 1
        self.stopped = self._stops.met_by(token)
        return np.array([token], np.int64)


@dataclass(slots=True)
class Step:
    """One generated step: `value` `(F,)` or a token, and the output `(O,)` that the model gave just before it."""

    number: int
    """Of the generated ones, from 1."""
    position: int
    """Steps done with it."""
    value: Array
    output: NDArray[np.float32]


@dataclass(slots=True)
class Rolled:
    """`values` `(n, F)` or `(n,)`, `outputs` `(n, O)`, of which those asked for; `state` has seen all of it."""

    values: Array
    outputs: NDArray[np.float32]
    position: int
    state: State


Tell = Callable[[Step], Awaitable[None]]
Run = Callable[[Array], Awaitable[NDArray[np.float32]]]


async def roll_out(
    engine: Engine,
    inputs: Array,
    feed: Feed,
    *,
    state: State | None = None,
    position: int = 0,
    outputs: Outputs = "all",
    deadline: float | None = None,
    tenant: str = "",
    tell: Tell,
) -> Rolled:
    """Run `inputs`, then what `feed` makes of the outputs; `tell` hears of each step once its run is done.

    Raises what `Engine.infer` raises. The slot is given back in any case, and at once when the caller is cancelled.
    """
    engine.admit(len(inputs))
    slot = engine.open(state, position)

    async def run(piece: Array, asked: Outputs = "all") -> NDArray[np.float32]:
        _admit_next(engine)
        request = engine.submit(slot, piece, outputs=asked, deadline=deadline, tenant=tenant, admitted=True)
        result = await engine.result(request)
        _leave_if_cancelled()
        return result.outputs

    try:
        last = await run(inputs, "last")
        values, shown = await _go_on(run, last, feed, outputs, position + len(inputs), tell)
        return Rolled(np.concatenate([inputs[:0], *values]), shown, engine.position(slot), engine.read(slot))
    finally:
        engine.close(slot)


async def _go_on(
    run: Run, last: NDArray[np.float32], feed: Feed, outputs: Outputs, position: int, tell: Tell
) -> tuple[list[Array], NDArray[np.float32]]:
    """From the output `last` `(1, O)`: the pieces that were fed, and the outputs before each step as asked for."""
    values, shown, number = [], [last[:0]], 0
    while not feed.ended:
        piece = feed.follow(last[0])
        after = await run(piece)
        before, last = np.concatenate([last, after[:-1]]), after[-1:]
        values.append(piece)
        if outputs == "all":
            shown.append(before)
        elif outputs == "last":
            shown = [before[-1:]]
        for value, output in zip(piece, before, strict=True):
            number += 1
            await tell(Step(number, position + number, value, output))
    return values, np.concatenate(shown)


def _leave_if_cancelled() -> None:
    """`Engine.result` still gives the result that was there when its caller was cancelled: here work would go on."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _admit_next(engine: Engine) -> None:
    """Raises Draining and EngineFailure. A full queue turns away new work only, not the next step of what was begun."""
    with suppress(QueueFull):
        engine.admit(1)


@dataclass(slots=True)
class Begin:
    """Where a rollout of a sequence begins, and what its draws go by."""

    at: int
    state: State
    seed: int
    repeatable: bool
    """The caller named its step, so the call can be told from another one."""


class Rollouts:
    """Rollouts of sequences. The sequence moves at the end, by one call that has all steps in it, or not at all.

    Of the last ones of each sequence it is kept where they began, so that a call whose answer was lost can be repeated:
    it is rolled out once more, which gives the same values, and moves nothing. This process alone keeps it: elsewhere,
    and after a restart, a repeat is a StepConflict.
    """

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._begun: WeakKeyDictionary[Sequence, OrderedDict[tuple[int, bytes], Begin]] = WeakKeyDictionary()

    async def begin(self, sequence: Sequence, *, step: int | None, asked: bytes, seed: int | None) -> Begin:
        """`step` is where the caller believes the sequence to stand, `asked` all else that the call says.

        Raises StepConflict unless it stands there, or this repeats a call that began there.
        """
        at, state = await self._sequences.read_state(sequence)
        if step is not None and step != at:
            begun = self._begun.get(sequence)
            known = begun.get((step, asked)) if begun else None
            if known is None:
                raise sequence.step_conflict(step)
            return known
        return Begin(at, state, choose_seed() if seed is None else seed, repeatable=step is not None)

    async def commit(
        self,
        sequence: Sequence,
        begin: Begin,
        steps: Array,
        *,
        asked: bytes,
        deadline: float | None,
    ) -> bool:
        """Let the sequence stand after `steps`, the inputs and all that was generated. True: it did so already.

        Raises StepConflict when another call moved it meanwhile; it is then where that call left it.
        """
        result = await self._sequences.step(sequence, steps, step=begin.at, outputs="none", deadline=deadline)
        if begin.repeatable:
            begun = self._begun.setdefault(sequence, OrderedDict())
            begun[begin.at, asked] = begin
            if len(begun) > NUM_ANSWERS:
                begun.popitem(last=False)
        return result.replayed


def join(inputs: Array, rolled: Rolled) -> Array:
    """All steps of a rollout, as if they had been given."""
    return np.concatenate([inputs, rolled.values])


def choose_seed() -> int:
    return randbits(SEED_BITS)
