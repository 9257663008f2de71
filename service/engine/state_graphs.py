"""Three little ONNX graphs that move states about on the device where the model runs, and look at them there.

The arena has one tensor a state, `(slots, E)`: a row's numbers back to back, E of them. A batch has them as the model's
graph wants them, `(L, B, H)`. The graphs go from one to the other, for all states of a model at once.

The serving half has no `onnx`, so the few messages of its format that this takes are written here, field by field, with
the numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. The tests let `onnx` read and check them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from service.model_spec import BATCH, StateSpec

OPSET, IR_VERSION = 17, 8
"""What onnxruntime 1.20 reads; every operator used here has a CUDA kernel at this opset."""

FLOAT, INT64 = 1, 7
"""TensorProto.DataType"""

SLOTS, ROWS, CHECKED = "slots", "rows", "checked"
"""Inputs and outputs beside those of each state, which `arena`, `arena_after` and `batch` name."""

Dim = int | str


def arena(n: int) -> str:
    """The arena's tensor of state n."""
    return f"arena{n}"


def arena_after(n: int) -> str:
    """The same once rows were written; to be bound to the same memory."""
    return f"arena{n}_after"


def batch(n: int) -> str:
    """State n of many rows, as the model's graph has it."""
    return f"batch{n}"


def gather_graph(states: Sequence[StateSpec]) -> bytes:
    """`slots` (B,) and the arena -> the batch."""
    graph = _Graph()
    graph.take(SLOTS, INT64, ("B",))
    for n, state in enumerate(states):
        graph.take(arena(n), FLOAT, ("slots", prod(state.row_shape)))
        rows = graph.node("Gather", arena(n), SLOTS, axis=0)
        graph.give(batch(n), FLOAT, state.shape)
        _from_rows(graph, rows, state, to=batch(n))
    return graph.model()


def scatter_graph(states: Sequence[StateSpec]) -> bytes:
    """The batch, of which the rows `rows` (K,) go to `slots` (K, 1) of the arena -> the arena after that.

    Elements and not whole rows are scattered, since CUDA's ScatterND gives a row to one thread, number by number; its
    ScatterElements gives each number to a thread of its own.
    """
    graph = _Graph()
    graph.take(SLOTS, INT64, ("K", 1))
    graph.take(ROWS, INT64, ("K",))
    for n, state in enumerate(states):
        size = prod(state.row_shape)
        graph.take(arena(n), FLOAT, ("slots", size))
        graph.take(batch(n), FLOAT, state.shape)
        kept = graph.node("Gather", _to_rows(graph, batch(n), state), ROWS, axis=0)
        places = graph.node("Expand", SLOTS, graph.node("Shape", kept))
        graph.give(arena_after(n), FLOAT, ("slots", size))
        graph.node("ScatterElements", arena(n), places, kept, to=arena_after(n), axis=0)
    return graph.model()


def check_graph(states: Sequence[StateSpec]) -> bytes:
    """The batch -> `checked` (B,): zero for each row whose numbers are all finite, else NaN.

    Zero times a number is zero, and NaN when that is infinite or NaN; a sum keeps NaN wherever it is computed, which a
    maximum does not.
    """
    graph = _Graph()
    graph.constant("zero", FLOAT, (), bytes(4))
    numbers = graph.numbers("axes", [1])
    sums = []
    for n, state in enumerate(states):
        graph.take(batch(n), FLOAT, state.shape)
        zeros = graph.node("Mul", _to_rows(graph, batch(n), state), "zero")
        sums.append(graph.node("ReduceSum", zeros, numbers, keepdims=0))
    graph.give(CHECKED, FLOAT, (BATCH,))
    graph.node("Sum", *sums, to=CHECKED)
    return graph.model()


def _from_rows(graph: _Graph, rows: str, state: StateSpec, to: str) -> None:
    """(B, E) -> the shape that the model's graph has."""
    axis = state.batch_axis
    if prod(state.row_shape[:axis]) == 1:  # as most models have it, (1, B, H): nothing moves
        shape = [-1 if size == BATCH else int(size) for size in state.shape]
        graph.node("Reshape", rows, graph.numbers("shape", shape), to=to)
        return
    split = graph.node("Reshape", rows, graph.numbers("shape", [-1, *state.row_shape]))
    graph.node("Transpose", split, to=to, perm=[*range(1, axis + 1), 0, *range(axis + 1, len(state.shape))])


def _to_rows(graph: _Graph, name: str, state: StateSpec) -> str:
    """The reverse."""
    axis = state.batch_axis
    if prod(state.row_shape[:axis]) > 1:
        name = graph.node("Transpose", name, perm=[axis, *(n for n in range(len(state.shape)) if n != axis)])
    return graph.node("Reshape", name, graph.numbers("shape", [-1, prod(state.row_shape)]))


class _Graph:
    """A graph being written. Values are named by their number."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._count = 0

    def take(self, name: str, dtype: int, shape: Sequence[Dim]) -> None:
        """An input."""
        self._inputs.append(_value_info(name, dtype, shape))

    def give(self, name: str, dtype: int, shape: Sequence[Dim]) -> None:
        """An output."""
        self._outputs.append(_value_info(name, dtype, shape))

    def node(self, operator: str, *inputs: str, to: str = "", **attributes: int | list[int]) -> str:
        """The name of its one output."""
        self._count += 1
        name = to or f"value{self._count}"
        written = b"".join(_field(5, _attribute(key, value)) for key, value in attributes.items())
        ins = b"".join(_field(1, value) for value in inputs)
        self._nodes.append(ins + _field(2, name) + _field(3, f"node{self._count}") + _field(4, operator) + written)
        return name

    def numbers(self, name: str, values: list[int]) -> str:
        """A constant of whole numbers, (len(values),) int64."""
        self._count += 1
        name = f"{name}{self._count}"
        raw = b"".join(value.to_bytes(8, "little", signed=True) for value in values)
        return self.constant(name, INT64, (len(values),), raw)

    def constant(self, name: str, dtype: int, shape: Sequence[int], raw: bytes) -> str:
        dims = b"".join(_field(1, size) for size in shape)
        self._constants.append(dims + _field(2, dtype) + _field(8, name) + _field(9, raw))
        return name

    def model(self) -> bytes:
        parts = ((1, self._nodes), (5, self._constants), (11, self._inputs), (12, self._outputs))
        graph = b"".join(_field(number, part) for number, group in parts for part in group) + _field(2, "states")
        return _field(1, IR_VERSION) + _field(2, "carousel") + _field(7, graph) + _field(8, _field(2, OPSET))


def _value_info(name: str, dtype: int, shape: Sequence[Dim]) -> bytes:
    dims = (_field(1, size) if isinstance(size, int) else _field(2, size) for size in shape)
    tensor = _field(1, dtype) + _field(2, b"".join(_field(1, dim) for dim in dims))
    return _field(1, name) + _field(2, _field(1, tensor))


def _attribute(name: str, value: int | list[int]) -> bytes:
    integer, integers = 2, 7
    if isinstance(value, int):
        return _field(1, name) + _field(3, value) + _field(20, integer)
    return _field(1, name) + b"".join(_field(8, number) for number in value) + _field(20, integers)


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protocol buffer: a whole number, or bytes with their length before them."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first. Of numbers that are not negative."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
