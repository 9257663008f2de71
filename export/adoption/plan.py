"""What is known of a model that nobody here made: what each of its tensors is, and why that is believed.

Axes are named as everywhere: "batch" the rows, "time" the steps; a number is a fixed size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

BATCH, TIME = "batch", "time"

Array = npt.NDArray[Any]
Axis = str | int | None
"""Of a file: a name, a size, or not said."""
Axes = tuple[Axis, ...]
Bounds = tuple[int, int] | None
"""The least and the most of whole numbers; None for any others."""


class AdoptionError(Exception):
    """The file cannot be served as it was asked; the message says why, and what to say or change."""


@dataclass(frozen=True)
class Wishes:
    """What the caller said of the file; what is left out is looked for."""

    states: Mapping[str, str] = field(default_factory=dict)
    """State input -> the output that gives its next value."""
    data: tuple[str, ...] = ()
    """Inputs and outputs that are no states, whatever their names say."""
    constants: Mapping[str, Array] = field(default_factory=dict)
    contexts: Mapping[str, int] = field(default_factory=dict)
    """Input -> how many of its last values stand in front of the next call's."""
    shapes: Mapping[str, Axes] = field(default_factory=dict)
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    time_axes: Mapping[str, int | None] = field(default_factory=dict)
    once: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    """States that do not begin from zeros: the caller gives them when a sequence begins."""
    lengths: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    lift: bool = False
    max_batch_size: int | None = None
    sample: Array | None = None
    """Inputs to examine the model with, (T, ...) of one sequence; random ones where there are none."""
    expected: Array | None = None
    """What the model's maker gets for `sample`, from the beginning of a sequence."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Of the manifest: name, task, description, kind, source, licence, file."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of the file."""

    name: str
    dtype: np.dtype[Any]
    axes: Axes | None
    """None where the file does not even tell the rank."""

    @classmethod
    def of(cls, info: onnx.ValueInfoProto) -> Tensor:
        """Raises AdoptionError for what is no tensor of numbers."""
        if info.type.WhichOneof("value") != "tensor_type":
            raise AdoptionError(f"{info.name!r} is no tensor: sequences, maps and optional values cannot be served")
        tensor = info.type.tensor_type
        try:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except (KeyError, TypeError) as error:
            raise AdoptionError(f"{info.name!r} has elements of type {tensor.elem_type}, no numbers") from error
        if dtype.name not in _DTYPES:
            raise AdoptionError(f"{info.name!r} has elements of type {dtype}; expected one of {', '.join(_DTYPES)}")
        axes = tuple(_axis(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
        return cls(info.name, dtype, axes)

    @property
    def is_integer(self) -> bool:
        return self.dtype.kind in "iub"


_SIZES = {"float": (16, 32, 64), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "bool": ("",)}
_DTYPES = tuple(f"{kind}{size}" for kind, sizes in _SIZES.items() for size in sizes)


@dataclass(frozen=True)
class Stream:
    """An input or output with a value for each step, or for each call.

    `order` says where the file has its axes: "batch" and "time", if it has them, and a number for each axis of one
    step, as in `("time", "batch", 0)`; `step` gives those axes' sizes.
    """

    tensor: Tensor
    order: tuple[str | int, ...]
    step: tuple[int, ...]
    reason: str = ""

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def bounds(self) -> Bounds:
        if not self.tensor.is_integer:
            return None
        if self.tensor.dtype.kind == "b":
            return 0, 1
        info = np.iinfo(self.tensor.dtype)
        return int(info.min), int(info.max)

    def sizes(self, B: int, T: int) -> tuple[int, ...]:
        """The shape as the file has it."""
        return tuple({BATCH: B, TIME: T}[a] if isinstance(a, str) else self.step[a] for a in self.order)


@dataclass(frozen=True)
class State:
    """A tensor that is carried from call to call."""

    tensor: Tensor
    output: str
    shape: tuple[str | int, ...]
    """As the file has it, at most one axis "batch"."""
    reason: str = ""
    required: bool = False
    """Given when a sequence begins, not zeros."""

    @property
    def name(self) -> str:
        return self.tensor.name

    def sizes(self, B: int) -> tuple[int, ...]:
        return tuple(B if axis == BATCH else int(axis) for axis in self.shape)


@dataclass(frozen=True)
class Plan:
    """What every tensor of the file is."""

    inputs: tuple[Stream, ...]
    outputs: tuple[Tensor, ...]
    states: tuple[State, ...]
    once: tuple[State, ...]
    """Given when a sequence begins and kept: their `output` is their own name."""
    lengths: tuple[Tensor, ...]
    contexts: Mapping[str, int]

    @property
    def has_time(self) -> bool:
        """Does a call take several steps? Else one call is one step."""
        return any(TIME in stream.order for stream in self.inputs)

    @property
    def has_batch(self) -> bool:
        return all(BATCH in stream.order for stream in self.inputs)

    @property
    def takes_tokens(self) -> bool:
        """Are all data whole numbers, one of each input a step?"""
        return all(stream.tensor.is_integer and not stream.step for stream in self.inputs)

    @property
    def bounds(self) -> list[Bounds]:
        """Of each place of a step, the inputs side by side."""
        return [stream.bounds for stream in self.inputs for _ in range(math.prod(stream.step))]


def one_line(error: Exception) -> str:
    """What a library says, short enough for a message of ours."""
    return " ".join(str(error).split())[:300]


def _axis(dim: onnx.TensorShapeProto.Dimension) -> Axis:
    if dim.WhichOneof("value") == "dim_value":
        return int(dim.dim_value) if dim.dim_value > 0 else None
    return dim.dim_param or None
