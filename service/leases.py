"""Which leases to look at, and when. Renewing one costs nothing: it is looked at when it was due, and put off then."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


class Leases(Generic[T]):
    """Holders of leases by the second in which to look at them. `T` is hashable. Times come in as arguments."""

    def __init__(self) -> None:
        self._due: dict[int, set[T]] = {}
        self._seconds: list[int] = []  # heap of the seconds in use

    def watch(self, holder: T, until: float) -> int:
        """Look at `holder` once `until` has passed; the second to `forget` it by."""
        second = int(until) + 1
        if second not in self._due:
            self._due[second] = set()
            heapq.heappush(self._seconds, second)
        self._due[second].add(holder)
        return second

    def forget(self, holder: T, second: int) -> None:
        """The lease is over: nothing here holds `holder` any more."""
        if second in self._due:
            self._due[second].discard(holder)

    def take_due(self, now: float, most: int) -> list[T]:
        """At most `most` holders whose second has come. Whoever is taken is watched no longer."""
        taken: list[T] = []
        while self._seconds and self._seconds[0] <= now and len(taken) < most:
            due = self._due[self._seconds[0]]
            while due and len(taken) < most:
                taken.append(due.pop())
            if not due:
                del self._due[heapq.heappop(self._seconds)]
        return taken
