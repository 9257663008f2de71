"""States of any type as float32, exactly: the server carries float32 and nothing else.

Small types fit as they are. An integer of 32 or 64 bits becomes four places of 16 bits, a double three numbers that add
up to it, on one more axis at the end. Zeros stay zeros, so that a sequence begins as the file has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from export.adoption.graph_edit import Nodes

_PLACES, _BASE = 4, 65536
_PARTS = 3

Shape = tuple[str | int, ...]


def shape(own: Shape, dtype: np.dtype[Any]) -> Shape:
    """As float32, of a tensor that is `own` in the file."""
    extra = {"wide": (_PLACES,), "double": (_PARTS,)}.get(_kind(dtype), ())
    return (*own, *extra)


def decode(nodes: Nodes, value: str, dtype: np.dtype[Any]) -> str:
    """float32 -> the file's type."""
    kind = _kind(dtype)
    if kind == "plain":
        return nodes.cast(value, dtype) if dtype != np.float32 else value
    wide, weight = (np.int64, _BASE) if kind == "wide" else (np.float64, 1)
    count, base = (_PLACES if kind == "wide" else _PARTS), nodes.scalar(weight, wide)
    parts = nodes.cast(value, wide)
    # from the last, the highest place of an integer and the smallest part of a double: ReduceSum rounds integers
    total = nodes.take_last(parts, count - 1)
    for place in reversed(range(count - 1)):
        total = nodes.add("Add", [nodes.add("Mul", [total, base]), nodes.take_last(parts, place)])
    return nodes.cast(total, dtype)


def encode(nodes: Nodes, value: str, dtype: np.dtype[Any]) -> str:
    """The file's type -> float32."""
    kind = _kind(dtype)
    if kind == "plain":
        return nodes.cast(value, np.float32) if dtype != np.float32 else value
    parts = _places(nodes, value) if kind == "wide" else _numbers(nodes, value)
    return nodes.add("Concat", [nodes.unsqueeze(part, -1) for part in parts], axis=-1)


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype == np.float64:
        return "double"
    return "wide" if dtype.kind in "iu" and dtype.itemsize > 2 else "plain"


def _places(nodes: Nodes, value: str) -> list[str]:
    """From the lowest; the highest has the sign."""
    base, left, places = nodes.scalar(_BASE, np.int64), nodes.cast(value, np.int64), []
    for _ in range(_PLACES - 1):
        low = nodes.add("Mod", [left, base])
        places.append(nodes.cast(low, np.float32))
        left = nodes.add("Div", [nodes.add("Sub", [left, low]), base])
    return [*places, nodes.cast(left, np.float32)]


def _numbers(nodes: Nodes, value: str) -> list[str]:
    """The nearest float32, the nearest to what is left, and once more: 72 bits for a double's 53."""
    numbers: list[str] = []
    for _ in range(_PARTS):
        numbers.append(nodes.cast(value, np.float32))
        value = nodes.add("Sub", [value, nodes.cast(numbers[-1], np.float64)])
    return numbers
