"""How long things are measured. The whole of FULL fits into five minutes on two cores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    repeats: int
    closed_seconds: float
    """A closed-loop run at 128 streams."""
    store_repeats: int
    side_repeats: int
    side_seconds: float
    """One at 1 or 32 streams, for information."""
    open_seconds: float
    probes: int
    """Steps of the search for the highest rate held."""
    engine_seconds: float
    silent_steps: int
    """Zeros, then signal: 3,750 steps are a minute at 16 ms each."""
    num_idle: int
    num_brief: int
    """Sequences that begin and expire beside one that steps."""


FULL = Sizes(5, 0.8, 3, 2, 0.4, 0.8, 2, 0.5, 3750, 1_000_000, 100_000)
QUICK = Sizes(1, 0.3, 1, 1, 0.2, 0.4, 2, 0.2, 500, 20_000, 5_000)
