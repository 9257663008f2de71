"""The tensors of a request as a model takes them: of its types and shapes, finite, and in its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.model_spec import ModelSpec, TensorSpec
from service.protocol.arrays import Array, State, check_tokens
from service.protocol.codec import JSON, is_absent
from service.protocol.oip.bodies import InputTensor
from service.protocol.oip.tensors import (
    ACCEPTED,
    BYTES,
    Shape,
    accepted_datatypes,
    check_size,
    read_binary,
    read_json,
    read_texts_binary,
    read_texts_json,
)

Places = Mapping[str, slice]
"""Where in the body each binary tensor stands, by its name."""


def input_shape(tensor: InputTensor, spec: TensorSpec) -> Shape:
    """`(B, T, F)` or `(B, T)`. Raises InvalidInput."""
    return _check_shape(tensor, (None, None, *spec.step_shape))


def read_input(tensor: InputTensor, spec: TensorSpec, body: bytes, places: Places) -> Array:
    """`(B, T, F)` float32 or `(B, T)` int64; may be a view of `body`. Raises InvalidInput."""
    shape = input_shape(tensor, spec)
    if tensor.datatype == BYTES and spec.vocabulary:
        return _read_tokens(tensor, spec, shape, body, places)
    array = _read_numbers(tensor, spec.dtype, accepted_datatypes(spec), shape, body, places)
    if spec.dtype == "int64":
        check_tokens(cast("NDArray[np.int64]", array), spec, tensor.name)
    return array


def read_states(
    tensors: Mapping[str, InputTensor], spec: ModelSpec, rows: int, body: bytes, places: Places
) -> list[State]:
    """The states of each row, in the order of the spec; zeros for one that is left out. Raises InvalidInput."""
    arrays: list[Array] = []
    for state in spec.states:
        tensor = tensors.get(state.input)
        if tensor is None:
            arrays.append(np.zeros((rows, *state.row_shape), np.float32))
            continue
        shape = _check_shape(tensor, (rows, *state.row_shape))
        arrays.append(_read_numbers(tensor, state.dtype, ACCEPTED[state.dtype], shape, body, places))
    return [tuple(array[row] for array in arrays) for row in range(rows)]


def _check_shape(tensor: InputTensor, expected: Sequence[int | None]) -> Shape:
    shape = tuple(tensor.shape)
    if len(shape) == len(expected) and all(
        size == wanted or (wanted is None and size) for size, wanted in zip(shape, expected, strict=True)
    ):
        return shape
    wanted_shape = [-1 if size is None else size for size in expected]
    raise InvalidInput(
        f"{tensor.name}: expected shape {wanted_shape}, the batch first and -1 for any size from 1; got "
        f"{list(shape[:8])}.",
        expected=wanted_shape,
        received=list(shape[:8]),
    )


def _read_tokens(tensor: InputTensor, spec: TensorSpec, shape: Shape, body: bytes, places: Places) -> Array:
    """Tokens sent as their texts, one an element."""
    found = _find_data(tensor, places)
    if found is None:
        texts = read_texts_json(tensor.name, shape, tensor.data)
    else:
        texts = read_texts_binary(tensor.name, shape, memoryview(body)[found])
    tokens = np.array([spec.token_ids.get(text, -1) for text in texts], np.int64)
    if (unknown := np.flatnonzero(tokens < 0)).size:
        text = texts[unknown[0]][:40]
        raise InvalidInput(
            f"{tensor.name}: element {unknown[0]}, {text!r}, is not in the vocabulary. Each element is one token.",
            place=f"{tensor.name}[{unknown[0]}]",
            received=text,
        )
    return tokens.reshape(shape)


def _read_numbers(
    tensor: InputTensor, dtype: str, accepted: Sequence[str], shape: Shape, body: bytes, places: Places
) -> Array:
    name, datatype = tensor.name, tensor.datatype
    if datatype not in accepted:
        raise InvalidInput(
            f"{name}: expected datatype {' or '.join(accepted)}, got {datatype[:20]}.",
            expected=list(accepted),
            received=datatype[:20],
        )
    found = _find_data(tensor, places)
    if found is None:
        array = read_json(name, datatype, dtype, shape, tensor.data)
    else:
        check_size(name, datatype, shape, found.stop - found.start)
        array = read_binary(datatype, dtype, shape, body, found.start)
    if dtype == "float32" and not np.isfinite(array).all():
        index = np.argwhere(~np.isfinite(array))[0]
        place = name + "".join(f"[{n}]" for n in index)
        raise InvalidInput(
            f"{place}: expected a finite number, got NaN, Infinity or a number beyond float32.",
            place=place,
            expected="a finite number",
        )
    return array


def _find_data(tensor: InputTensor, places: Places) -> slice | None:
    """Where its binary data stand; None for JSON."""
    if tensor.parameters and not is_absent(JSON, tensor.parameters.shared_memory_region):
        raise InvalidInput(f"{tensor.name}: shared memory is not part of this server. Send data or binary data.")
    found = places.get(tensor.name)
    if is_absent(JSON, tensor.data) == (found is None):
        raise InvalidInput(f"{tensor.name}: expected either data or parameters.binary_data_size.")
    return found
