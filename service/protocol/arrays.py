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
from service.protocol.codec import JSON, Codec, decode_part, is_absent
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
    if codec is not JSON:
        return _messagepack_length(bytes(memoryview(raw)[:5]))
    shape, text = spec.input.step_shape, bytes(raw)
    numbers = (text.count(b",") + 1) // math.prod(shape)
    lists_a_step = sum(math.prod(shape[:axis]) for axis in range(len(shape)))
    return max(numbers, (text.count(b"[") - 1) // lists_a_step) if shape else numbers


def read_inputs(codec: Codec, raw: msgspec.Raw, spec: ModelSpec, place: str = "inputs") -> Array:
    """Inputs of one sequence, `(T, F)` float32 or `(T,)` int64, T >= 1. Raises InvalidInput that names the place."""
    tensor = spec.input
    try:
        if len(raw) <= LARGE_BYTES:
            array: Array = read_whole(codec, raw, 1 + len(tensor.step_shape), tensor.dtype)
        else:
            array = join(_blocks(codec, raw, tensor))
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


def _blocks(codec: Codec, raw: msgspec.Raw, tensor: TensorSpec) -> Iterator[NDArray[Any]]:
    rank, text = len(tensor.step_shape), bytes(raw)
    if codec is JSON and rank < 2 and text.startswith(b"["):
        for piece in pieces(text, rank):
            yield read_whole(codec, piece, 1 + rank, tensor.dtype)
        return
    steps = decode_part(codec, list[msgspec.Raw], raw)
    for start in range(0, len(steps), READ_BLOCK):
        yield read_block(codec, steps[start : start + READ_BLOCK], rank, tensor.dtype)


def _messagepack_length(head: bytes) -> int:
    if head[:1] in (b"\xdc", b"\xdd"):
        return int.from_bytes(head[1 : 3 if head[0] == 0xDC else 5], "big")
    return head[0] & 0x0F if head and head[0] >> 4 == 0x9 else 0


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
