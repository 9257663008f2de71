"""Arrays and times as they go into an answer."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.model_spec import ModelSpec

PROBLEM_TYPE = "application/problem+json"


def contiguous(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The encoder reads memory as it lies; a row of a batch of transposed outputs lies otherwise."""
    return np.ascontiguousarray(array)


def named_state(spec: ModelSpec, state: tuple[NDArray[np.float32], ...]) -> dict[str, NDArray[np.float32]]:
    """State tensors by name, `(L, H)` each."""
    return {part.name: contiguous(array) for part, array in zip(spec.states, state, strict=True)}


def steps_document(
    spec: ModelSpec,
    sequence_id: str,
    step: int,
    outputs: NDArray[np.float32],
    state: tuple[NDArray[np.float32], ...] | None,
    expires_at: float,
    *,
    replayed: bool,
) -> dict[str, Any]:
    """What a `steps` call is answered with."""
    document: dict[str, Any] = {
        "sequence_id": sequence_id,
        "step": step,
        "outputs": contiguous(outputs),
        "expires_at": timestamp(expires_at),
        "replayed": replayed,
    }
    if state is not None:
        document["final_state"] = named_state(spec, state)
    return document


def timestamp(seconds: float) -> str:
    """Seconds since the epoch -> RFC 3339 in UTC, to the millisecond."""
    whole = int(seconds)
    return f"{_to_the_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=64)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
