"""Words and places for what is wrong with a body."""

from __future__ import annotations

import math
from typing import Any


def non_finite_place(tree: Any) -> str | None:
    """Where the first NaN or infinite number of a document stands, for example `sequences[2].inputs[17][3]`."""
    path = _path_to_non_finite(tree)
    if path is None:
        return None
    words = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in reversed(path))
    return "".join(words).removeprefix(".") or "body"


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


def _path_to_non_finite(tree: Any) -> list[str | int] | None:
    """Keys and indices, innermost first."""
    if isinstance(tree, float):
        return None if math.isfinite(tree) else []
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for part, value in pairs:
        if (path := _path_to_non_finite(value)) is not None:
            path.append(part)
            return path
    return None
