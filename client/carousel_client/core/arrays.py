"""NumPy to JSON and back. Numbers are finite float32, or integers; anything else is refused here, before it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carousel_client.errors import InvalidInput, InvalidState, Unprocessable

Array = NDArray[Any]
Floats = NDArray[np.float32]
State = Mapping[str, ArrayLike]
"""Tensors by name, as the model's card has them: `{"h": (L, H), "c": (L, H)}` for an LSTM."""


def to_array(value: ArrayLike, place: str, kind: type[Unprocessable] = InvalidInput) -> Array:
    """float32 or int64, finite, with a time axis. Raises `kind`, with the `place` of the first number that is not."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise _refusal(kind, place, "an array", "lists of different lengths") from None
    if array.dtype.kind not in "iuf":
        raise _refusal(kind, place, "numbers", str(array.dtype))
    if array.ndim == 0:
        raise _refusal(kind, place, "an array with a time axis", "a single number")
    if array.dtype.kind in "iu":
        return array if array.dtype.kind == "u" else array.astype(np.int64, copy=False)
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32, copy=False)
    if not np.isfinite(floats).all():
        where = tuple(np.argwhere(~np.isfinite(floats))[0])
        at = place + "".join(f"[{index}]" for index in where)
        raise _refusal(kind, at, "a finite float32 number", str(array[where]))
    return floats


def to_lists(value: ArrayLike, place: str) -> list[Any]:
    """Of one sequence's inputs, `(T, F)` numbers or `(T,)` token ids. Raises InvalidInput."""
    lists: list[Any] = to_array(value, place).tolist()
    return lists


def state_to_lists(state: State, place: str) -> dict[str, list[Any]]:
    """Raises InvalidState."""
    return {name: to_array(value, f"{place}.{name}", InvalidState).tolist() for name, value in state.items()}


def to_floats(lists: Any) -> Floats:
    """What the server wrote: nested lists of numbers."""
    return np.array(lists, np.float32)


def to_state(document: Mapping[str, Any] | None) -> dict[str, Floats] | None:
    return None if document is None else {name: to_floats(lists) for name, lists in document.items()}


def _refusal(kind: type[Unprocessable], place: str, expected: str, received: str) -> Unprocessable:
    message = f"{place}: expected {expected}, got {received}. Nothing was sent."
    return kind(message, {"place": place, "expected": expected, "received": received})
