"""Sequences of a running sum in plain NumPy: what the server must hold, and what it may answer.

A lease has two ends: until the first, which was told, the sequence must live; after the second it must not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

REPLAYS = 16
TOMBSTONE_SECONDS = 3600.0
TICK = 0.002
"""Times are told in milliseconds, rounded down."""


@dataclass
class Plain:
    """One sequence."""

    ttl: float
    now: float
    total: Array
    step: int = 0
    answers: list[tuple[int, Array, Array]] = field(default_factory=list)
    """Step before, inputs (T, F), outputs (T, F)."""
    least: float = 0.0
    most: float = 0.0

    def __post_init__(self) -> None:
        self.renew(self.now)

    def renew(self, now: float) -> None:
        self.least = self.most = now + self.ttl

    def may_renew(self, now: float) -> None:
        """A call that failed may or may not begin the lease anew."""
        self.most = now + self.ttl

    def tell(self, expires_at: float) -> None:
        """What was told must be kept, and must be possible."""
        assert self.least - TICK <= expires_at <= self.most + TICK, (self.least, expires_at, self.most)
        self.least = max(self.least, expires_at)

    def outputs(self, inputs: Array) -> Array:
        return self.total + np.cumsum(inputs, axis=0, dtype=np.float32)

    def run(self, inputs: Array) -> Array:
        outputs = self.outputs(inputs)
        self.answers = [*self.answers, (self.step, inputs, outputs)][-REPLAYS:]
        self.total, self.step = outputs[-1], self.step + len(inputs)
        return outputs

    def replay(self, step: int, inputs: Array) -> Array | None:
        """The answer to the same call before."""
        for begun_at, seen, outputs in reversed(self.answers):
            if begun_at == step and np.array_equal(seen, inputs):
                return outputs
        return None

    def put(self, total: Array, step: int) -> None:
        self.total, self.step, self.answers = total, step, []


@dataclass
class Ended:
    reason: str
    at: float
    """It is told for an hour from then on; longer only until somebody looks."""
