"""Which leases to look at, and when. Renewing one costs nothing: it is looked at when it was due, and put off then."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


_PARTS = 16
"""Of a second: a set that grows moves all that is in it at once, and a million leases may end in the same second."""


class Leases(Generic[T]):
    """Holders of leases by the second in which to look at them. `T` is hashable. Times come in as arguments."""

    def __init__(self) -> None:
        # by part of a second; that number beside it, so that all who wait in it share the one object
        self._due: dict[int, tuple[int, set[T]]] = {}
        self._parts: list[int] = []  # heap of the parts in use

    def watch(self, holder: T, until: float) -> int:
        """Look at `holder` once `until` has passed; what to `forget` it by."""
        part = (int(until) + 1) * _PARTS + hash(holder) % _PARTS
        if part not in self._due:
            self._due[part] = part, set()
            heapq.heappush(self._parts, part)
        part, due = self._due[part]
        due.add(holder)
        return part

    def forget(self, holder: T, part: int) -> None:
        """The lease is over: nothing here holds `holder` any more."""
        if part in self._due:
            self._due[part][1].discard(holder)

    def take_due(self, now: float, most: int) -> list[T]:
        """At most `most` holders whose second has come. Whoever is taken is watched no longer."""
        taken: list[T] = []
        while self._parts and self._parts[0] // _PARTS <= now and len(taken) < most:
            _, due = self._due[self._parts[0]]
            while due and len(taken) < most:
                taken.append(due.pop())
            if not due:
                del self._due[heapq.heappop(self._parts)]
        return taken
