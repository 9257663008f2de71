"""How long a run of (rows, steps) takes: measured on a short grid at load, corrected by the runs after that.

Pure: it is told the times. It knows no clock, no arrays and no onnxruntime.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MAX_RUN_SECONDS = 0.02
"""No run is planned to take longer: others wait as long before they get their turn."""

_WEIGHT = 0.1  # of a new observation; a tenth follows a slow drift and forgives one slow run


class CostModel:
    """Predicted seconds of a run, kept for powers of two of rows and steps."""

    def __init__(self, max_rows: int, max_chunk: int) -> None:
        self.max_rows = max_rows
        self.max_chunk = max_chunk
        self._seconds: dict[tuple[int, int], float] = {}

    def calibrate(self, measure: Callable[[int, int], float]) -> None:
        """Fill the table: `measure(rows, steps)` runs the model and says how long it took, in seconds.

        Both axes grow by factors of four until a run takes longer than MAX_RUN_SECONDS; what lies between or beyond is
        predicted from its neighbours, in proportion.
        """
        for steps in _powers(self.max_chunk, 4):
            for rows in _powers(self.max_rows, 4):
                self._seconds[rows, steps] = measure(rows, steps)
                if self._seconds[rows, steps] > MAX_RUN_SECONDS:
                    break
            if self._seconds[1, steps] > MAX_RUN_SECONDS:
                break
        measured = dict(self._seconds)
        for steps in _powers(self.max_chunk, 2):
            for rows in _powers(self.max_rows, 2):
                self._seconds[rows, steps] = _from_neighbour(measured, rows, steps)

    def predict(self, rows: int, steps: int) -> float:
        """Seconds that a run will take; infinity before anything was measured.

        Models that must see a sequence whole may run more steps than the table has: then in proportion.
        """
        chunk = min(_round_up(steps), self.max_chunk)
        seconds = self._seconds.get((min(_round_up(rows), self.max_rows), chunk), math.inf)
        return seconds * max(1.0, steps / chunk)

    def observe(self, rows: int, steps: int, seconds: float) -> None:
        """Correct the prediction by a run that took `seconds`."""
        known = self._seconds.get((rows, steps))
        if known is not None:  # other counts round up to a bucket they do not fill, and would pull it down
            self._seconds[rows, steps] = known + _WEIGHT * (seconds - known)

    def ladder(self, seconds: float = MAX_RUN_SECONDS) -> dict[int, int]:
        """Chunk length -> most rows that run at it within `seconds`. Chunks of one step are always there."""
        rungs = {1: self._most_rows(1, seconds) or 1}
        for steps in _powers(self.max_chunk, 2)[1:]:
            rows = self._most_rows(steps, seconds)
            if not rows:
                break
            rungs[steps] = rows
        return rungs

    def _most_rows(self, steps: int, seconds: float) -> int:
        """A machine that was busy at load makes wide runs look slower than they are, and nobody would try them.

        So they are not taken for slower than the narrower ones say: twice the rows take twice the time at most.
        """
        most, bound, narrower = 0, math.inf, 0
        for rows in _powers(self.max_rows, 2):
            bound = min(self.predict(rows, steps), bound * rows / narrower if narrower else math.inf)
            narrower = rows
            if bound <= seconds:
                most = rows
        return most


def _from_neighbour(measured: dict[tuple[int, int], float], rows: int, steps: int) -> float:
    """In proportion to the nearest point measured at no more rows and steps."""
    below = [(r, s) for r, s in measured if r <= rows and s <= steps]
    near = min(below, key=lambda point: (math.log2(rows / point[0]) + math.log2(steps / point[1]), point))
    return measured[near] * (rows * steps) / (near[0] * near[1])


def _powers(limit: int, factor: int) -> list[int]:
    powers = [factor**n for n in range(int(math.log(limit, factor) + 1e-9) + 1)]
    return powers if powers[-1] == limit else [*powers, limit]


def _round_up(count: int) -> int:
    return 1 << (count - 1).bit_length()
