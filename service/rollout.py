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
from functools import partial
from secrets import randbits
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from service.engine.engine import Engine
from service.engine.request import Array, Outputs, State
from service.errors import QueueFull
from service.replay import Kept, is_large
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
    seed: int
    state: State = ()
    kept: Kept | None = None
    """Of the call that this may repeat, in place of the state."""
    repeatable: bool = False
    """The caller named its step, so the call can be told from another one."""


class Rollouts:
    """Rollouts of sequences. The sequence moves at the end, by one call that has all steps in it, or not at all.

    Other calls may step it meanwhile: a rollout takes as long as whoever reads it, and would hold them up. Then it ends
    with a StepConflict. A call whose answer was lost can be repeated: it is rolled out once more, from what is kept of
    the steps that moved the sequence, which gives the same values, and moves nothing. This process alone knows a seed
    that the caller did not name, and the state before few steps of a model whose outputs depend on what runs together.
    """

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._begun: WeakKeyDictionary[Sequence, OrderedDict[int, Begin]] = WeakKeyDictionary()

    async def begin(self, sequence: Sequence, *, step: int | None, seed: int | None, commit: bool) -> Begin:
        """`step` is where the caller believes the sequence to stand.

        Raises StepConflict unless it stands there, or a call is known that began there, and that this may repeat.
        """
        at, state = await self._sequences.read_state(sequence)
        if step is None or step == at:
            return Begin(at, choose_seed() if seed is None else seed, state, repeatable=step is not None)
        spec = sequence.model.spec
        kept = sequence.replays.begun_at(step, spec) if commit and sequence.replays else None
        begun = self._begun.get(sequence, OrderedDict()).get(step)
        if kept and kept.start is None and begun and not spec.batch_invariant:
            kept.start = begun.state  # what it put out a step at a time may not be what it did for all at once
        if seed is None:
            seed = begun.seed if begun else None if spec.samples else 0
        if kept is None or seed is None:
            raise sequence.step_conflict(step)
        return Begin(step, seed, kept=kept)

    async def run(
        self,
        sequence: Sequence,
        begin: Begin,
        inputs: Array,
        feed: Feed,
        *,
        commit: bool,
        outputs: Outputs,
        deadline: float | None,
        tell: Tell,
    ) -> tuple[Rolled, bool]:
        """Roll out on a copy of the state and, with `commit`, let the sequence stand after it. True: it did so already.

        Raises what `roll_out` raises; StepConflict when another call moved it meanwhile, or was meant by a repeat.
        """
        roll = partial(
            roll_out,
            sequence.model.engine,
            inputs,
            feed,
            position=begin.at,
            outputs=outputs,
            deadline=deadline,
            tenant=sequence.key[0],
        )
        if begin.kept is None:
            rolled = await roll(state=begin.state, tell=tell)
            return rolled, commit and await self._commit(sequence, begin, join(inputs, rolled), deadline)
        kept, told = begin.kept, list[Step]()

        async def hold_back(step: Step) -> None:
            told.append(step)

        if kept.start is None:
            again = await _read_back(kept, begin.at, inputs, feed, outputs, hold_back)
        else:
            again = await roll(state=kept.start, tell=hold_back)
        if again is None or not kept.is_of(join(inputs, again)):
            raise sequence.step_conflict(begin.at)
        for step in told:  # not before it is known to be the same
            await tell(step)
        return again, True

    async def _commit(self, sequence: Sequence, begin: Begin, steps: Array, deadline: float | None) -> bool:
        # of few steps, what they put out is kept, for want of the state before them
        few = not is_large(len(steps), sequence.model.spec)
        kept: Outputs = "all" if few else "none"
        result = await self._sequences.step(
            sequence, steps, step=begin.at, outputs=kept, return_state=few, deadline=deadline
        )
        if begin.repeatable:
            begun = self._begun.setdefault(sequence, OrderedDict())
            begun[begin.at] = begin
            if len(begun) > NUM_ANSWERS:
                begun.popitem(last=False)
        return result.replayed


class _Another(Exception):
    """The call is another one than is kept."""


async def _read_back(kept: Kept, at: int, inputs: Array, feed: Feed, outputs: Outputs, tell: Tell) -> Rolled | None:
    """A rollout from the outputs that its model gave. None: it was another one."""
    done = 0

    async def run(piece: Array) -> NDArray[np.float32]:
        nonlocal done
        done += len(piece)
        if done > len(kept.outputs):
            raise _Another
        return kept.outputs[done - len(piece) : done]

    with suppress(_Another):
        last = (await run(inputs))[-1:]
        values, shown = await _go_on(run, last, feed, outputs, at + len(inputs), tell)
        return Rolled(np.concatenate([inputs[:0], *values]), shown, kept.position, kept.end)
    return None


def join(inputs: Array, rolled: Rolled) -> Array:
    """All steps of a rollout, as if they had been given."""
    return np.concatenate([inputs, rolled.values])


def choose_seed() -> int:
    return randbits(SEED_BITS)
