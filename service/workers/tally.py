"""What a worker's calls came to, until it tells."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any


class Tally:
    """Answers by status, and their seconds by the bounds of a histogram."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._clear()

    def _clear(self) -> None:
        self._statuses: Counter[int] = Counter()
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def note(self, status: int, seconds: float) -> None:
        self._statuses[int(status)] += 1
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def take(self) -> dict[str, Any]:
        """All since the last time."""
        taken = {"statuses": dict(self._statuses), "counts": self._counts, "total": self._total}
        self._clear()
        return taken
