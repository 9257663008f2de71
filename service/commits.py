"""Ends of calls -> changes of committed records, one commit for all that ended together; rows -> records and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from service.engine.request import Ending, State
from service.errors import CarouselError, Stale
from service.model_spec import ModelSpec
from service.replay import Replays, pack_answer
from service.sequence import Sequence
from service.stores.store import Advance, Begin, Change, Record, Store, new_revision


class Committer:
    """What an engine asks to make ends durable before it answers. The owner of each request is its Sequence."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def __call__(self, endings: list[Ending]) -> list[CarouselError | None]:
        """Stale for a sequence that another process moved, or ended. Raises StoreUnavailable: nothing is kept."""
        now = self._clock()
        answers = [_pack_answers(ending) for ending in endings]
        changes: list[Change] = []
        last: list[int] = []
        for ending, packed in zip(endings, answers, strict=True):
            changes += _changes(ending, packed, now)
            last.append(len(changes) - 1)
        applied = await self._store.commit(changes)
        errors: list[CarouselError | None] = []
        for ending, packed, place in zip(endings, answers, last, strict=True):
            if applied[place]:
                self._take_over(ending, packed, changes[place], now)
            errors.append(None if applied[place] else Stale("Another process moved the sequence meanwhile."))
        return errors

    def _take_over(self, ending: Ending, packed: list[bytes], change: Change, now: float) -> None:
        sequence: Sequence = ending.request.owner
        assert isinstance(change, Advance | Begin), "_changes makes no others"
        sequence.revision = change.new_revision if isinstance(change, Advance) else change.record.revision
        sequence.last_used_at = now
        sequence.replays = sequence.replays or Replays()
        for answer in packed:
            sequence.replays.append(answer)


def record_of(sequence: Sequence, state: bytes, step: int, answers: list[bytes], now: float) -> Record:
    return Record(
        key=sequence.key,
        version=sequence.model.version,
        fingerprint=sequence.model.fingerprint,
        revision=new_revision(),
        step=step,
        state=state,
        answers=answers,
        created_at=sequence.created_at,
        last_used_at=now,
        ttl_seconds=sequence.ttl_seconds,
    )


def pack_state(state: State) -> bytes:
    """The tensors back to back, in the order of the spec."""
    return b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in state)


def unpack_state(packed: bytes, spec: ModelSpec) -> State:
    """Raises ValueError for bytes of another length."""
    tensors, at = [], 0
    for part in spec.states:
        tensors.append(np.frombuffer(packed, np.dtype(part.dtype), part.row_bytes // np.dtype(part.dtype).itemsize, at))
        at += part.row_bytes
    if at != len(packed):
        raise ValueError(f"expected {at} bytes of state, got {len(packed)}")
    return tuple(tensor.reshape(part.row_shape) for tensor, part in zip(tensors, spec.states, strict=True))


def _pack_answers(ending: Ending) -> list[bytes]:
    before = ending.request.owner.before
    return [pack_answer(request.inputs, result, before) for request, result in ending.answers]


def _changes(ending: Ending, packed: list[bytes], now: float) -> list[Change]:
    """The first commit of a tentative sequence begins it. Calls that ran as one are as many advances, in one commit."""
    sequence: Sequence = ending.request.owner
    if sequence.tentative:
        return [Begin(record_of(sequence, ending.state, ending.position, packed, now))]
    changes: list[Change] = []
    revision = sequence.revision
    for answer, (_, result) in zip(packed, ending.answers, strict=True):
        at, revision = revision, revision + 1  # stores tell by it which answer is the newest
        changes.append(Advance(sequence.key, at, revision, result.position, ending.state, answer, now))
    return changes
