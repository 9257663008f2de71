"""Small models as others make them, with answers that are plain: most of them sum what they are given.

Each returns the bytes of a file without a manifest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {
    "f": TensorProto.FLOAT,
    "d": TensorProto.DOUBLE,
    "i": TensorProto.INT64,
    "i32": TensorProto.INT32,
    "u8": TensorProto.UINT8,
    "b": TensorProto.BOOL,
    "s": TensorProto.STRING,
}


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Names parted by blanks; `-` is a place left empty."""
    parts = [[name.replace("-", "") for name in side.split()] for side in (inputs, outputs)]
    return helper.make_node(operator, *parts, **attributes)


def info(text: str) -> onnx.ValueInfoProto:
    """`x f batch,time,3`; `sr i` is a scalar, `?` an axis of which nothing is said."""
    name, kind, *axes = text.split()
    sizes = axes[0].split(",") if axes else []
    shape = [int(size) if size.isdecimal() else None if size == "?" else size for size in sizes]
    return helper.make_tensor_value_info(name, TYPES[kind], shape)


def build(
    nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str], opset: int = 17, **constants: Any
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "foreign", [info(t) for t in inputs], [info(t) for t in outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def content(*arguments: Any, **constants: Any) -> bytes:
    data: bytes = build(*arguments, **constants).SerializeToString()
    return data


def one_step(x: str = "x f batch,2", state: str = "h f batch,2", after: str = "hn", opset: int = 17) -> bytes:
    """One call is one step: y = hn = h + x."""
    names = x.split()[0], state.split()[0]
    nodes = [node("Add", " ".join(names), after), node("Identity", after, "y")]
    outputs = [f"y {' '.join(x.split()[1:])}", f"{after} {' '.join(state.split()[1:])}"]
    return content(nodes, [x, state], outputs, opset)


def sums(x: str, state: str, axis: int) -> bytes:
    """y = cumulative sum along `axis` of x, beginning with the state; the state goes on. The state keeps that axis."""
    nodes = [
        node("CumSum", "x axis", "sums"),
        node("Add", "sums h", "y"),
        node("Slice", "y last end where", "hn"),
    ]
    constants = {"axis": np.int64(axis), "last": np.array([-1]), "end": np.array([2**31]), "where": np.array([axis])}
    return content(nodes, [f"x {x}", f"h {state}"], [f"y {x}", f"hn {state}"], **constants)


def two_cells(crossed: bool = False) -> bytes:
    """Two states of one shape that must not be taken for each other: y = a + 2 b + x, a sums x, b sums a."""
    nodes = [
        node("CumSum", "x axis", "sums"),
        node("Add", "sums a", "as"),
        node("CumSum", "as axis", "more"),
        node("Add", "more b", "bs"),
        node("Add", "as bs", "y"),
        node("Slice", "as last end where", "first"),
        node("Slice", "bs last end where", "second"),
        node("Identity", "first", "b_out" if crossed else "a_out"),
        node("Identity", "second", "a_out" if crossed else "b_out"),
    ]
    constants = {"axis": np.int64(1), "last": np.array([-1]), "end": np.array([2**31]), "where": np.array([1])}
    state = "f batch,1,2"
    return content(
        nodes,
        ["x f batch,time,2", f"a {state}", f"b {state}"],
        ["y f batch,time,2", f"a_out {state}", f"b_out {state}"],
        **constants,
    )


def lstm_weights(features: int, hidden: int, cell: str = "LSTM", directions: int = 1, seed: int = 0) -> dict[str, Any]:
    gates, random = {"RNN": 1, "GRU": 3, "LSTM": 4}[cell], np.random.default_rng(seed)

    def some(*shape: int) -> Any:
        return (random.standard_normal(shape) / 2).astype(np.float32)

    return {"W": some(directions, gates * hidden, features), "R": some(directions, gates * hidden, hidden)}


def forgetful(cell: str = "LSTM", zeros: str = "none", direction: str = "forward", layers: int = 1) -> bytes:
    """Recurrent layers (T, B, 3) -> (T, B, H) that begin anew at every call.

    `zeros`: "none" leaves the initial state out, "made" makes it from the input's shape, "fixed" has constants.
    """
    H, D = 3, 2 if direction == "bidirectional" else 1
    constants: dict[str, Any] = lstm_weights(3, H, cell, D)
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape one", "rows"),
        node("Concat", "ones rows size", "state_shape", axis=0),
        node("ConstantOfShape", "state_shape", "made"),
    ]
    constants |= {"one": np.array([1]), "ones": np.array([D]), "size": np.array([H])}
    constants["fixed"] = np.full((D, 1, H), 0.5, np.float32)
    states = {"none": "", "made": " made made", "fixed": " fixed fixed"}[zeros]
    if cell != "LSTM" and states:
        states = states.rsplit(" ", 1)[0]
    below = "x"
    for layer in range(layers):
        nodes.append(node(cell, f"{below} W R - -{states}", f"all{layer}", hidden_size=H, direction=direction))
        nodes.append(node("Squeeze", f"all{layer} one", f"y{layer}") if D == 1 else _side_by_side(layer))
        below = f"y{layer}"
    nodes.append(node("Identity", below, "y"))
    return content(nodes, ["x f time,batch,3"], [f"y f time,batch,{D * H}"], **constants)


def _side_by_side(layer: int) -> onnx.NodeProto:
    return node("ReduceSum", f"all{layer} one", f"y{layer}", keepdims=0)
