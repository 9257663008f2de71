"""Steps of many sequences that one caller sent together: each is what a call of its own would be, for less.

Only the plain case goes this way, see `ready`; all else is a call of its own. Knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.request import Array, Outputs
from service.engine.volleys import Volley
from service.errors import CarouselError
from service.replay import Replays, pack_answers
from service.sequence import Sequence
from service.turns import Turns


@dataclass(slots=True)
class VolleyResult:
    """How many calls ended, in the order of their sequences."""

    outputs: NDArray[np.float32]
    """(N, T, ...), (N, 1, ...) or (N, 0, ...), as asked."""
    positions: list[int]
    errors: dict[int, CarouselError]
    """By place; the outputs there mean nothing."""


def ready(sequence: Sequence | None, step: int | None) -> bool:
    """May its next steps go in a volley? It is there for good, nothing of it is under way, and it stands at `step`.

    Where each step is committed to a store, each is a call of its own.
    """
    if sequence is None or sequence.left_at is not None or sequence.tentative:
        return False
    engine, turns = sequence.model.engine, sequence.turns
    return (
        engine.commit is None
        and (turns is None or not turns.busy)
        and (step is None or step == engine.position(sequence.slot))
    )


def begin_volley(
    sequences: tuple[Sequence, ...],
    inputs: Array,
    outputs: Outputs,
    renew: Callable[[Sequence], None],
    on_end: Callable[[VolleyResult], None],
) -> None:
    """Run `inputs` (N, T, ...), the next steps of these sequences, all `ready`, different, of one model and tenant.

    `renew` begins the lease of one anew. Raises QueueFull, Draining; nothing has begun then.
    """
    steps, engine = inputs.shape[1], sequences[0].model.engine
    turns = Turns()  # one for all of them: whoever comes to any of them meanwhile waits until the volley is over
    turns.try_enter(alone=True)

    def ended(volley: Volley) -> None:
        result = _result(volley, sequences, outputs)
        _keep_answers(volley, sequences, result)
        turns.leave()
        waited_for = turns.busy
        for sequence in sequences:
            sequence.steps_queued = 0
            renew(sequence)
            if not waited_for:
                sequence.turns = None
        on_end(result)

    slots, tenant = np.array([sequence.slot for sequence in sequences]), sequences[0].key[0]
    engine.submit_volley(slots, inputs, ended, tenant)
    for sequence in sequences:
        sequence.turns = turns
        sequence.steps_queued = steps


def _result(volley: Volley, sequences: tuple[Sequence, ...], outputs: Outputs) -> VolleyResult:
    engine = sequences[0].model.engine
    positions = [engine.position(slot) for slot in volley.slots.tolist()]
    if volley.outputs is None:
        return VolleyResult(np.empty((len(positions), 0), np.float32), positions, volley.errors)
    first = {"all": 0, "last": volley.outputs.shape[1] - 1, "none": volley.outputs.shape[1]}[outputs]
    return VolleyResult(volley.outputs[:, first:], positions, volley.errors)


def _keep_answers(volley: Volley, sequences: tuple[Sequence, ...], result: VolleyResult) -> None:
    """For those that repeat their call."""
    if volley.outputs is None:
        return
    inputs, outputs, positions = volley.inputs, result.outputs, result.positions
    if volley.errors:
        good = [place for place in range(len(sequences)) if place not in volley.errors]
        if not good:
            return
        inputs, outputs, positions = inputs[good], outputs[good], [positions[place] for place in good]
        sequences = tuple(sequences[place] for place in good)
    steps = inputs.shape[1]
    answers = pack_answers(inputs, outputs, [position - steps for position in positions])
    for sequence, answer in zip(sequences, answers, strict=True):
        if sequence.replays is None:
            sequence.replays = Replays()
        sequence.replays.append(answer)
