"""One tensor of the Open Inference Protocol: its bytes or JSON numbers -> a NumPy array.

Binary data are little-endian, row-major and without padding; an element of BYTES is its length, 4 bytes, and then
itself. What is read from binary data is a view of it, wherever its type is the model's.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.model_spec import TensorSpec
from service.protocol.arrays import LARGE_BYTES, Array, count_items
from service.protocol.codec import JSON, decode_part
from service.protocol.misfits import MISFITS, find_misfit, items_of, read_block, read_whole, shape_of
from service.protocol.pieces import join, pieces

Shape = tuple[int, ...]

ACCEPTED = {
    "float32": ("FP32", "FP16", "BF16", "INT16", "INT8", "UINT16", "UINT8"),
    "int64": ("INT64", "INT32", "INT16", "INT8", "UINT32", "UINT16", "UINT8"),
}
"""What a tensor of the model's type may be sent as: types that lose nothing on the way. The first is its own."""

BYTES = "BYTES"

_NUMPY = {
    name: np.dtype(code)
    for name, code in {
        "FP32": "<f4",
        "FP16": "<f2",
        "BF16": "<u2",  # NumPy has no such type: read as its bits
        "INT64": "<i8",
        "INT32": "<i4",
        "INT16": "<i2",
        "INT8": "<i1",
        "UINT32": "<u4",
        "UINT16": "<u2",
        "UINT8": "<u1",
    }.items()
}
_NOT_IN_JSON = ("FP16", "BF16")
_NESTED = re.compile(rb"\s*\[\s*\[")
_LENGTH = struct.Struct("<I")
_BLOCK_BYTES = LARGE_BYTES // 2


def datatype_of(dtype: str) -> str:
    """The protocol's name of a model's type."""
    return ACCEPTED[dtype][0]


def accepted_datatypes(tensor: TensorSpec) -> tuple[str, ...]:
    """What an input may be sent as; tokens also as their texts."""
    numbers = ACCEPTED[tensor.dtype]
    return (*numbers, BYTES) if tensor.vocabulary else numbers


def check_size(name: str, datatype: str, shape: Shape, size: int) -> None:
    """Raises InvalidInput unless `size` bytes are what such numbers take."""
    expected = math.prod(shape) * _NUMPY[datatype].itemsize
    if size != expected:
        raise InvalidInput(
            f"{name}: {datatype} {list(shape)} takes {expected} bytes, binary_data_size says {size}.",
            expected=expected,
            received=size,
        )


def read_binary(datatype: str, dtype: str, shape: Shape, body: bytes, begin: int) -> Array:
    """The numbers at `begin` of `body`, as `dtype`. There must be as many, see `check_size`."""
    array = np.frombuffer(body, _NUMPY[datatype], math.prod(shape), begin).reshape(shape)
    if datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array if array.dtype == dtype else array.astype(dtype)


def read_json(name: str, datatype: str, dtype: str, shape: Shape, raw: msgspec.Raw) -> Array:
    """Nested or flat numbers, as `dtype`. Raises InvalidInput that names the first place that does not fit."""
    if datatype in _NOT_IN_JSON:
        raise InvalidInput(
            f"{name}: {datatype} has no form in JSON. Send it as binary data, see parameters.binary_data_size and the "
            "header Inference-Header-Content-Length.",
            expected="binary data",
            received="data",
        )
    kind = "float32" if datatype == "FP32" else "int64"
    lengths = shape if _NESTED.match(raw) else (math.prod(shape),)
    size = math.prod(shape)
    if len(raw) > LARGE_BYTES and (items := count_items(JSON, raw)) != size:
        raise InvalidInput(
            f"{name}: expected a list of {size} numbers, got {items}.", place=name, expected=size, received=items
        )
    try:
        array = _read_in_blocks(raw, kind, len(lengths))
        bounds = np.iinfo(_NUMPY[datatype]) if kind == "int64" else None
        fits = bounds is None or not array.size or (array.min() >= bounds.min and array.max() <= bounds.max)
        if array.shape == lengths and fits:
            return array.astype(dtype, copy=False).reshape(shape)
    except MISFITS:
        pass
    where, why = find_misfit(JSON, raw, lengths, name, kind) or (name, f"a number is beyond {datatype}")
    raise InvalidInput(f"{where}: {why}.", place=where, expected=list(lengths), received=shape_of(JSON, raw))


def read_texts_json(name: str, shape: Shape, raw: msgspec.Raw) -> list[str]:
    """Nested or flat strings, in a row. Raises InvalidInput."""
    rank, size = len(shape) if _NESTED.match(raw) else 1, math.prod(shape)
    if len(raw) > LARGE_BYTES and (text := bytes(raw)).count(b'"') > 2 * size + text.count(rb"\""):
        raise InvalidInput(f"{name}: expected {size} strings, got more.", expected=size)
    wanted: Any = str
    for _ in range(rank):
        wanted = list[wanted]
    try:
        texts = np.array(decode_part(JSON, wanted, raw), object)
    except MISFITS as error:
        raise InvalidInput(f"{name}: expected strings in {list(shape)}.", expected=list(shape)) from error
    if texts.shape not in (shape, (size,)):
        raise InvalidInput(
            f"{name}: expected {list(shape)} strings.", expected=list(shape), received=shape_of(JSON, raw)
        )
    return list(texts.ravel())


def read_texts_binary(name: str, shape: Shape, data: memoryview) -> list[str]:
    """Strings that each follow their length. Raises InvalidInput."""
    texts, at = [], 0
    while at + _LENGTH.size <= len(data):
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(data, at)[0]
        if at > len(data):
            break
        texts.append(str(data[begin:at], "utf-8", "replace"))
    if at != len(data) or len(texts) != math.prod(shape):
        raise InvalidInput(
            f"{name}: expected {math.prod(shape)} elements of BYTES, each after its length in 4 bytes, got "
            f"{len(texts)} and {max(0, len(data) - at)} bytes left over.",
            expected=math.prod(shape),
            received=len(texts),
        )
    return texts


def _read_in_blocks(raw: msgspec.Raw, kind: str, rank: int) -> NDArray[Any]:
    """Lists in lists. What is large is read a piece at a time, so that other threads get their turn meanwhile."""
    if len(raw) <= LARGE_BYTES:
        return read_whole(JSON, raw, rank, kind)
    if rank <= 2 and (text := bytes(raw)).startswith(b"["):
        return join(read_whole(JSON, piece, rank, kind) for piece in pieces(text, rank - 1))
    items = items_of(JSON, raw) or []
    num_each = _BLOCK_BYTES * len(items) // len(raw)
    if num_each < 2:
        return join(_read_in_blocks(item, kind, rank - 1)[None] for item in items)
    starts = range(0, len(items), num_each)
    return join(read_block(JSON, items[n : n + num_each], rank - 1, kind) for n in starts)
