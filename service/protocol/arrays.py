"""Fields of a body -> NumPy arrays that fit a model. The good path has no loop over elements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NoReturn, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, InvalidState
from service.model_spec import ModelSpec, TensorSpec
from service.protocol.codec import JSON, Codec, decode_field, decode_part, is_absent, most_names
from service.protocol.misfits import MISFITS, find_misfit, read_block, read_whole, shape_of
from service.protocol.pieces import join, pieces
from service.protocol.places import shorten

Array = NDArray[np.float32] | NDArray[np.int64]
State = tuple[NDArray[np.float32], ...]

LARGE_BYTES = 32 * 1024
"""More than this takes 0.2 to 0.6 ms to read: it is read in blocks, by a thread that others can interrupt."""

READ_BLOCK = 64
"""Steps of MessagePack, or of more than one axis, that are read at a stroke."""

MAX_NUMBER_BYTES = 128
"""Digits and white space of a state's number, at the very most."""


def count_steps(codec: Codec, raw: msgspec.Raw, spec: ModelSpec) -> int:
    """Steps of `inputs`, told without reading them. Exact where they fit the model; else what their size amounts to."""
    shape, text = spec.input.step_shape, bytes(raw) if codec is JSON else raw
    items = count_items(codec, text)
    if not (isinstance(text, bytes) and shape):
        return items
    lists_a_step = sum(math.prod(shape[:axis]) for axis in range(len(shape)))
    return max(items // math.prod(shape), (text.count(b"[") - 1) // lists_a_step)


def count_items(codec: Codec, raw: msgspec.Raw | bytes) -> int:
    """Of a list of numbers, in JSON at any depth, told without reading it."""
    if codec is JSON:
        return bytes(raw).count(b",") + 1
    head = bytes(memoryview(raw)[:5])
    if head[:1] in (b"\xdc", b"\xdd"):
        return int.from_bytes(head[1 : 3 if head[0] == 0xDC else 5], "big")
    return head[0] & 0x0F if head and head[0] >> 4 == 0x9 else 0


def read_inputs(codec: Codec, raw: msgspec.Raw, spec: ModelSpec, place: str = "inputs") -> Array:
    """Inputs of one sequence, `(T, F)` float32 or `(T,)` int64, T >= 1. Raises InvalidInput that names the place."""
    tensor = spec.input
    try:
        if len(raw) <= LARGE_BYTES:
            array: Array = read_whole(codec, raw, 1 + len(tensor.step_shape), tensor.dtype)
        else:
            array = join(_blocks(codec, raw, len(tensor.step_shape), tensor.dtype))
    except MISFITS as error:
        _refuse_inputs(codec, raw, tensor, place, error)
    if array.shape[1:] != tensor.step_shape or not len(array):
        _refuse_inputs(codec, raw, tensor, place)
    if tensor.dtype == "int64":
        check_tokens(cast("NDArray[np.int64]", array), tensor, place)
    elif not np.isfinite(array).all():
        _refuse_inputs(codec, raw, tensor, place)
    return array


def read_state(codec: Codec, raw: msgspec.Raw, spec: ModelSpec, place: str = "initial_state") -> State | None:
    """A state in the order of the spec, `(L, H)` float32 each; None when it was left out. Raises InvalidState.

    Where the model requires some of its tensors, the others may be left out and are zeros.
    """
    if is_absent(codec, raw):
        return None
    expected = {state.name: list(state.row_shape) for state in spec.states}
    # twice: a quote within a name counts as well
    if len(raw) > LARGE_BYTES and (names := most_names(codec, raw)) > 2 * len(expected):
        raise InvalidState(
            f"{place}: expected {', '.join(expected)}; got some {names} names.", expected=expected, received=names
        )
    try:
        parts = decode_part(codec, dict[str, msgspec.Raw], raw)
    except MISFITS as error:
        raise InvalidState(f"{place}: expected an object of {', '.join(expected)}.", expected=expected) from error
    needed = {state.name for state in spec.states if state.required} or expected.keys()
    if not needed <= parts.keys() <= expected.keys():
        received = [shorten(name, 40) for name in sorted(parts)[:20]]
        raise InvalidState(
            f"{place}: expected {', '.join(expected)}; got {', '.join(received) or 'nothing'}.",
            expected=expected,
            received=received,
        )
    return tuple(
        _read_tensor(codec, parts[s.name], s.row_shape, f"{place}.{s.name}", expected[s.name])
        if s.name in parts
        else np.zeros(s.row_shape, np.float32)
        for s in spec.states
    )


def read_series(codec: Codec, raw: msgspec.Raw, most: int, length: int, place: str) -> dict[str, NDArray[np.float64]]:
    """Lists of numbers by name, at most `most`; the long ones have `length` items. Raises InvalidInput."""
    if (names := most_names(codec, raw)) > 2 * most:
        raise InvalidInput(
            f"{place}: expected no more than {most} names; got some {names}.", place=place, expected=most
        )
    parts = {} if is_absent(codec, raw) else decode_field(codec, dict[str, msgspec.Raw], raw, place)
    return {name: _read_numbers(codec, part, length, f"{place}.{shorten(name, 60)}") for name, part in parts.items()}


def _read_numbers(codec: Codec, raw: msgspec.Raw, length: int, place: str) -> NDArray[np.float64]:
    try:
        if len(raw) <= LARGE_BYTES:
            return read_whole(codec, raw, 1, "float64")
        if (items := count_items(codec, raw)) != length:
            raise InvalidInput(
                f"{place}: expected {length} numbers, got {items}.", place=place, expected=length, received=items
            )
        return join(_blocks(codec, raw, 0, "float64"))
    except MISFITS as error:
        where, why = find_misfit(codec, raw, (None,), place, "float64") or (place, "a number is out of range")
        raise InvalidInput(f"{where}: {why}.", place=where, expected="a list of numbers") from error


def _read_tensor(
    codec: Codec, raw: msgspec.Raw, shape: tuple[int, ...], place: str, expected: list[int]
) -> NDArray[np.float32]:
    if len(raw) > MAX_NUMBER_BYTES * (math.prod(shape) + 1):
        raise InvalidState(f"{place}: {len(raw)} bytes are more than {expected} numbers need.", expected=expected)
    try:
        array = read_whole(codec, raw, len(shape), "float32")
        if array.shape == shape and np.isfinite(array).all():
            return array
    except MISFITS:
        pass
    where, why = find_misfit(codec, raw, shape, place, "float32") or (place, "does not fit")
    raise InvalidState(f"{where}: {why}.", place=where, expected=expected, received=shape_of(codec, raw))


def _blocks(codec: Codec, raw: msgspec.Raw, rank: int, dtype: str) -> Iterator[NDArray[Any]]:
    """Of a list of items of `rank`."""
    text = bytes(raw)
    if codec is JSON and rank < 2 and text.startswith(b"["):
        for piece in pieces(text, rank):
            yield read_whole(codec, piece, 1 + rank, dtype)
        return
    steps = decode_part(codec, list[msgspec.Raw], raw)
    for start in range(0, len(steps), READ_BLOCK):
        yield read_block(codec, steps[start : start + READ_BLOCK], rank, dtype)


def check_tokens(tokens: NDArray[np.int64], tensor: TensorSpec, place: str) -> None:
    """Raises InvalidInput that names the first id, at any depth of `tokens`, that is beyond the vocabulary."""
    misfits = (tokens < 0) | (tokens >= tensor.token_limits)
    if not misfits.any():
        return
    index = np.argwhere(misfits)[0]
    where, token = place + "".join(f"[{n}]" for n in index), int(tokens[tuple(index)])
    size = int(np.broadcast_to(tensor.token_limits, tokens.shape)[tuple(index)])
    raise InvalidInput(
        f"{where}: no such token: {token}. Expected an id from 0 to {size - 1}, "
        "the place of the token in the vocabulary.",
        place=where,
        expected=f"0..{size - 1}",
        received=token,
    )


def _refuse_inputs(
    codec: Codec, raw: msgspec.Raw, tensor: TensorSpec, place: str, cause: Exception | None = None
) -> NoReturn:
    found = find_misfit(codec, raw, (None, *tensor.step_shape), place, tensor.dtype)
    where, why = found or (place, "a number is out of range")
    raise InvalidInput(
        f"{where}: {why}.", place=where, expected=["steps", *tensor.step_shape], received=shape_of(codec, raw)
    ) from cause
