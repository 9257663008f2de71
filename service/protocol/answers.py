"""Arrays and times as they go into an answer."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from service.model_spec import ModelSpec


def contiguous(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The encoder reads memory as it lies; a row of a batch of transposed outputs lies otherwise."""
    return np.ascontiguousarray(array)


def named_state(spec: ModelSpec, state: tuple[NDArray[np.float32], ...]) -> dict[str, NDArray[np.float32]]:
    """State tensors by name, `(L, H)` each."""
    return {part.name: contiguous(array) for part, array in zip(spec.states, state, strict=True)}


def timestamp(seconds: float) -> str:
    """Seconds since the epoch -> RFC 3339 in UTC, to the millisecond."""
    whole = int(seconds)
    return f"{_to_the_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=64)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
