"""Finds where in a field a value does not fit. Asked only once it is known that something is wrong.

The search goes through undecoded items, a block at a time, so that its cost stays near that of reading the field, and
other threads get their turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.protocol.codec import Codec, decode_part
from service.protocol.places import describe

Shape = Sequence[int | None]

MISFITS = (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError, RecursionError)
"""What msgspec and NumPy raise at a value of another type, shape or range."""

BLOCK = 256
MAX_DESCRIBED_BYTES = 4096


def find_misfit(codec: Codec, raw: msgspec.Raw, shape: Shape, place: str, dtype: str) -> tuple[str, str] | None:
    """The first place where `raw` is not nested lists of `shape` with finite numbers in them, and why.

    None in `shape` is any length but zero.
    """
    if not shape:
        reason = _token_misfit(codec, raw) if dtype == "int64" else _number_misfit(codec, raw)
        return (place, reason) if reason else None
    items = items_of(codec, raw)
    if items is None:
        return place, f"expected {_a_list(shape, dtype)}, got {_describe(codec, raw)}"
    if shape[0] is None and not items:
        return place, "expected at least one step, got none"
    if shape[0] is not None and len(items) != shape[0]:
        return place, f"expected {_a_list(shape, dtype)}, got {len(items)}"
    index = _first_misfit(codec, items, shape[1:], dtype)
    return None if index is None else find_misfit(codec, items[index], shape[1:], f"{place}[{index}]", dtype)


def read_whole(codec: Codec, raw: msgspec.Raw | bytes, rank: int, dtype: str) -> NDArray[Any]:
    """Nested lists of `rank`, as an array. Raises one of MISFITS."""
    with np.errstate(over="ignore"):
        return np.array(decode_part(codec, nested(rank, dtype), raw), dtype=dtype)


def read_block(codec: Codec, items: Sequence[msgspec.Raw], rank: int, dtype: str) -> NDArray[Any]:
    """Items that are nested lists of `rank`, as one array. Raises one of MISFITS."""
    wanted = nested(rank, dtype)
    with np.errstate(over="ignore"):
        return np.array([decode_part(codec, wanted, item) for item in items], dtype=dtype)


def items_of(codec: Codec, raw: msgspec.Raw) -> list[msgspec.Raw] | None:
    """Of a list, left as they are; None for anything else."""
    try:
        items: list[msgspec.Raw] = decode_part(codec, list[msgspec.Raw], raw)
    except MISFITS:
        return None
    return items


def shape_of(codec: Codec, raw: msgspec.Raw) -> list[int] | None:
    """Lengths of nested lists along their first items; None for anything else."""
    shape: list[int] = []
    while (items := items_of(codec, raw)) is not None:
        shape.append(len(items))
        if not items:
            break
        raw = items[0]
    return shape or None


@cache
def nested(rank: int, dtype: str) -> Any:
    """The type of lists in lists."""
    inner: Any = int if dtype == "int64" else float
    for _ in range(rank):
        inner = list[inner]
    return inner


def _first_misfit(codec: Codec, items: list[msgspec.Raw], shape: Shape, dtype: str) -> int | None:
    for first in range(0, len(items), BLOCK):
        block = items[first : first + BLOCK]
        if not _fits(codec, block, shape, dtype):
            return next((first + n for n, item in enumerate(block) if not _fits(codec, [item], shape, dtype)), None)
    return None


def _fits(codec: Codec, items: list[msgspec.Raw], shape: Shape, dtype: str) -> bool:
    try:
        array = read_block(codec, items, len(shape), dtype)
    except MISFITS:
        return False
    return array.shape[1:] == tuple(shape) and bool(np.isfinite(array).all())


def _a_list(shape: Shape, dtype: str) -> str:
    what = "lists" if len(shape) > 1 else "token ids" if dtype == "int64" else "numbers"
    return f"a list of {what}" if shape[0] is None else f"a list of {shape[0]} {what}"


def _number_misfit(codec: Codec, raw: msgspec.Raw) -> str | None:
    beyond = "expected a finite number, got NaN, Infinity or a number beyond float32"
    try:
        value = _small_tree(codec, raw)
    except UnicodeDecodeError:
        return "expected a number, got text that is not UTF-8"
    except MISFITS:
        return beyond  # of more digits than Python reads
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"expected a number, got {_describe(codec, raw)}"
    try:
        number = float(value)
    except OverflowError:
        return beyond
    if not math.isfinite(number):
        return beyond
    with np.errstate(over="ignore"):
        return None if np.isfinite(np.float32(number)) else f"expected a float32 number, {number:g} is beyond it"


def _token_misfit(codec: Codec, raw: msgspec.Raw) -> str | None:
    beyond = "no such token: the number is beyond 64 bits"
    try:
        value = _small_tree(codec, raw)
    except MISFITS:
        return beyond
    if isinstance(value, bool) or not isinstance(value, int):
        return f"expected a token id (an integer), got {_describe(codec, raw)}"
    return None if -(2**63) <= value < 2**63 else beyond


def _describe(codec: Codec, raw: msgspec.Raw) -> str:
    try:
        return describe(_small_tree(codec, raw))
    except MISFITS:
        return "a number too long to read"


def _small_tree(codec: Codec, raw: msgspec.Raw) -> Any:
    """Plain objects. What is long and no list is not looked into: it is described, never needed."""
    if len(raw) > MAX_DESCRIBED_BYTES and (items := items_of(codec, raw)) is not None:
        return items
    return codec.tree(bytes(raw))
