"""Fields of a body -> NumPy arrays that fit a model. The good path has no loop over elements."""

from __future__ import annotations

from functools import cache
from typing import Any, NoReturn, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, InvalidState
from service.model_spec import ModelSpec, TensorSpec
from service.protocol.codec import Codec, decode_part, is_absent
from service.protocol.places import misfit, shape_of

Array = NDArray[np.float32] | NDArray[np.int64]
State = tuple[NDArray[np.float32], ...]

# what msgspec and NumPy raise at a value of another type, shape or range
_MISFITS = (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError, RecursionError)


def read_inputs(codec: Codec, raw: msgspec.Raw, spec: ModelSpec, place: str = "inputs") -> Array:
    """Inputs of one sequence, `(T, F)` float32 or `(T,)` int64, T >= 1. Raises InvalidInput that names the place."""
    tensor = spec.input
    try:
        value = decode_part(codec, _nested(1 + len(tensor.step_shape), tensor.dtype), raw)
        with np.errstate(over="ignore"):
            array: Array = np.array(value, dtype=tensor.dtype)
    except _MISFITS as error:
        _refuse_inputs(codec, raw, tensor, place, error)
    if array.shape[1:] != tensor.step_shape or not len(array):
        _refuse_inputs(codec, raw, tensor, place)
    if tensor.dtype == "int64":
        _check_tokens(cast("NDArray[np.int64]", array), tensor, place)
    elif not np.isfinite(array).all():
        _refuse_inputs(codec, raw, tensor, place)
    return array


def read_state(codec: Codec, raw: msgspec.Raw, spec: ModelSpec, place: str = "initial_state") -> State | None:
    """A state in the order of the spec, `(L, H)` float32 each; None when it was left out. Raises InvalidState."""
    if is_absent(codec, raw):
        return None
    expected = {state.name: list(state.row_shape) for state in spec.states}
    try:
        parts = decode_part(codec, dict[str, msgspec.Raw], raw)
    except _MISFITS as error:
        raise InvalidState(f"{place}: expected an object of {', '.join(expected)}.", expected=expected) from error
    if parts.keys() != expected.keys():
        received = sorted(parts)[:20]
        raise InvalidState(
            f"{place}: expected {', '.join(expected)}; got {', '.join(received) or 'nothing'}.",
            expected=expected,
            received=received,
        )
    return tuple(
        _read_tensor(codec, parts[s.name], s.row_shape, f"{place}.{s.name}", expected[s.name]) for s in spec.states
    )


def _read_tensor(
    codec: Codec, raw: msgspec.Raw, shape: tuple[int, ...], place: str, expected: list[int]
) -> NDArray[np.float32]:
    try:
        value = decode_part(codec, _nested(len(shape), "float32"), raw)
        with np.errstate(over="ignore"):
            array = np.array(value, dtype=np.float32)
        if array.shape == shape and np.isfinite(array).all():
            return array
    except _MISFITS:
        pass
    tree = _tree(codec, raw)
    where, why = misfit(tree, shape, place, "number") or (place, "does not fit")
    raise InvalidState(f"{where}: {why}.", place=where, expected=expected, received=shape_of(tree))


def _check_tokens(tokens: NDArray[np.int64], tensor: TensorSpec, place: str) -> None:
    size = len(tensor.vocabulary) if tensor.vocabulary else np.iinfo(np.int64).max
    if tokens.min() >= 0 and tokens.max() < size:
        return
    step = int(np.flatnonzero((tokens < 0) | (tokens >= size))[0])
    raise InvalidInput(
        f"{place}[{step}]: no such token: {tokens[step]}. Expected an id from 0 to {size - 1}, "
        "the place of the token in the vocabulary.",
        place=f"{place}[{step}]",
        expected=f"0..{size - 1}",
        received=int(tokens[step]),
    )


def _refuse_inputs(
    codec: Codec, raw: msgspec.Raw, tensor: TensorSpec, place: str, cause: Exception | None = None
) -> NoReturn:
    tree = _tree(codec, raw)
    kind = "token" if tensor.dtype == "int64" else "number"
    where, why = misfit(tree, (None, *tensor.step_shape), place, kind) or (place, "a number is out of range")
    raise InvalidInput(
        f"{where}: {why}.", place=where, expected=["steps", *tensor.step_shape], received=shape_of(tree)
    ) from cause


def _tree(codec: Codec, raw: msgspec.Raw) -> Any:
    try:
        return codec.tree(bytes(raw))
    except (ValueError, msgspec.DecodeError, RecursionError):
        return None


@cache
def _nested(rank: int, dtype: str) -> Any:
    nested: Any = int if dtype == "int64" else float
    for _ in range(rank):
        nested = list[nested]
    return nested
