"""Finds where in a body a value does not fit. Slow: asked only once it is known that something is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def misfit(value: Any, shape: Sequence[int | None], place: str, kind: str) -> tuple[str, str] | None:
    """The first place where `value` is not nested lists of `shape` with finite numbers in them, and why.

    None in `shape` is any length but zero. `kind` is `number` or `token`.
    """
    if not shape:
        reason = _number_misfit(value) if kind == "number" else _token_misfit(value)
        return (place, reason) if reason else None
    if not isinstance(value, list | tuple):
        return place, f"expected {_a_list(shape, kind)}, got {describe(value)}"
    if shape[0] is None and not value:
        return place, "expected at least one step, got none"
    if shape[0] is not None and len(value) != shape[0]:
        return place, f"expected {_a_list(shape, kind)}, got {len(value)}"
    inner = (misfit(item, shape[1:], f"{place}[{index}]", kind) for index, item in enumerate(value))
    return next((found for found in inner if found), None)


def shape_of(value: Any) -> list[int] | None:
    """Lengths of nested lists along their first items; None for anything else."""
    if not isinstance(value, list | tuple):
        return None
    shape = []
    while isinstance(value, list | tuple):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def non_finite_place(tree: Any) -> str | None:
    """Where the first NaN or infinite number of a document stands, for example `sequences[2].inputs[17][3]`."""
    return next(_non_finite_places(tree, ""), None)


def describe(value: Any) -> str:
    """A value in a few words for an error message, never at length."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | int):
        return f"{value:g}" if isinstance(value, float) else "an integer" if abs(value) > 2**63 else str(value)
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "a string" if isinstance(value, str) else "an object" if isinstance(value, dict) else type(value).__name__


def _a_list(shape: Sequence[int | None], kind: str) -> str:
    what = {"number": "numbers", "token": "token ids"}[kind] if len(shape) == 1 else "lists"
    return f"a list of {what}" if shape[0] is None else f"a list of {shape[0]} {what}"


def _number_misfit(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"expected a number, got {describe(value)}"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isfinite(number):
        with np.errstate(over="ignore"):
            return None if np.isfinite(np.float32(number)) else f"expected a float32 number, {number:g} is beyond it"
    return "expected a finite number, got NaN, Infinity or a number beyond float32"


def _token_misfit(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return f"expected a token id (an integer), got {describe(value)}"
    return None


def _non_finite_places(tree: Any, place: str) -> Iterator[str]:
    if isinstance(tree, float) and not math.isfinite(tree):
        yield place or "body"
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _non_finite_places(value, f"{place}.{key}" if place else str(key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _non_finite_places(value, f"{place}[{index}]")
