"""What a worker has to know of the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STEPS_PATH = "/v1/models/{model}/sequences/{sequence_id}/steps"
"""What a worker takes."""

FIRST_PATIENCE = 4
"""Plain calls in a row after which a connection is worth handing over."""


@dataclass(frozen=True)
class Limits:
    """The settings of the same names."""

    tenants: Mapping[str, str]
    max_body_bytes: int
    max_steps: int
    max_stream_records: int
    max_stream_sequences: int
    keep_alive_seconds: float
    """How long a quiet connection is kept."""
    second_bounds: Sequence[float]
    """Of the histogram of answers."""
