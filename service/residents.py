"""Sequences whose row is in an arena, by key; and which to let go when room runs short: those used longest ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from service.registry import LoadedModel
from service.sequence import Sequence
from service.stores.store import Key

_NUM_SHARDS = 64
"""A dictionary that grows moves all that is in it at once; many small ones move a little at a time."""

EVICTED_SHARE = 64
"""One of so many rows makes room when none is left: whoever comes next finds room too."""


class Residents:
    """At most `room` sequences of each model version."""

    def __init__(self, room: int, *, evicts: bool) -> None:
        """`evicts`: the order of use is kept. It costs memory, and is of no use where there is room for all."""
        self._room = room
        self._evicts = evicts
        self._shards: tuple[dict[Key, Sequence], ...] = tuple({} for _ in range(_NUM_SHARDS))
        self._order: dict[LoadedModel, OrderedDict[Sequence, None]] = {}
        self._counts: dict[LoadedModel, int] = {}

    def find(self, key: Key) -> Sequence | None:
        return self._shards[hash(key) % _NUM_SHARDS].get(key)

    def add(self, sequence: Sequence) -> None:
        self._shards[hash(sequence.key) % _NUM_SHARDS][sequence.key] = sequence
        self._counts[sequence.model] = self.count(sequence.model) + 1
        if self._evicts:
            self._order.setdefault(sequence.model, OrderedDict())[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        del self._shards[hash(sequence.key) % _NUM_SHARDS][sequence.key]
        self._counts[sequence.model] -= 1
        if self._evicts:
            del self._order[sequence.model][sequence]
        if not self._counts[sequence.model]:
            del self._counts[sequence.model]
            self._order.pop(sequence.model, None)

    def used(self, sequence: Sequence) -> None:
        """It was used just now. A sequence that is not here is passed over."""
        if self._evicts and sequence in (order := self._order.get(sequence.model, OrderedDict())):
            order.move_to_end(sequence)

    def count(self, model: LoadedModel) -> int:
        return self._counts.get(model, 0)

    def models(self) -> list[LoadedModel]:
        return list(self._counts)

    def to_evict(self, model: LoadedModel) -> list[Sequence]:
        """If there is no room for one more: some that have no call under way, the longest unused first."""
        if self.count(model) < self._room or not self._evicts:
            return []
        # the call that begins a tentative one is about to come
        idle = (sequence for sequence in self._order[model] if not (sequence.is_busy or sequence.tentative))
        return list(islice(idle, max(1, self._room // EVICTED_SHARE)))

    def is_full(self, model: LoadedModel) -> bool:
        return self.count(model) >= self._room

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for shard in self._shards for sequence in shard.values())
