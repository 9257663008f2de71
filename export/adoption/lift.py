"""States that a graph resets at every call, lifted into inputs and outputs.

A recurrent operator whose initial state is left out, or is zeros that the graph makes itself, forgets at the end of a
call. Given an input in that place and an output for its last state, it goes on where the last call ended. Only
operators of the graph itself are lifted: those inside If, Loop or Scan stay as they are.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.adoption.graph_edit import names, prune, walk
from export.adoption.plan import AdoptionError

_STATES = {"RNN": ("h",), "GRU": ("h",), "LSTM": ("h", "c"), "DynamicQuantizeLSTM": ("h", "c")}
_FIRST_INITIAL, _FIRST_FINAL = 5, 1
"""Places of the initial h among an operator's inputs, and of its last h among the outputs; c's are the next ones."""
_FILLED = {"Constant", "ConstantOfShape"}
_PASSING = {"Expand", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Gather", "Identity", "Transpose", "Tile", "Cast"}
_DEEPEST = 64


def lift(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy with the states lifted, and which output gives each input's next value.

    Raises AdoptionError where there is nothing to lift, or something that cannot be.
    """
    lifted = onnx.ModelProto()
    lifted.CopyFrom(proto)
    graph = lifted.graph
    nodes = [node for node in graph.node if node.op_type in _STATES]
    if not nodes:
        inside = sorted({node.op_type for node in walk(graph) if node.op_type in _STATES})
        where = f"; it has {', '.join(inside)} inside If, Loop or Scan, where it cannot be reached" if inside else ""
        raise AdoptionError(f"--lift: the graph has no RNN, GRU or LSTM of its own{where}")
    pairs: dict[str, str] = {}
    for number, node in enumerate(nodes):
        _check_direction(node)
        for place, letter in enumerate(_STATES[node.op_type]):
            if _resets(node, place, graph):
                pairs |= _open(node, place, graph, f"{letter}{number}" if len(nodes) > 1 else letter)
    if not pairs:
        raise AdoptionError("--lift: every recurrent operator takes its state from outside already")
    prune(graph)
    return lifted, pairs


def _check_direction(node: onnx.NodeProto) -> None:
    direction = next((a.s.decode() for a in node.attribute if a.name == "direction"), "forward")
    if direction != "forward":
        raise AdoptionError(
            f"--lift: {node.op_type} {node.name!r} reads {direction}, so it needs the whole sequence; without --lift "
            "the model is served for whole sequences"
        )


def _resets(node: onnx.NodeProto, place: int, graph: onnx.GraphProto) -> bool:
    """Does the operator begin from zeros at every call? Raises AdoptionError if it begins from other constants."""
    initial = _initial(node, place)
    if not initial:
        return True
    value = _fixed(initial, graph, depth=0)
    if value is None:
        return False
    if value:
        raise AdoptionError(
            f"--lift: {node.op_type} {node.name!r} begins from {initial!r}, a constant that is not zero; here "
            "sequences begin from zeros"
        )
    return True


def _initial(node: onnx.NodeProto, place: int) -> str:
    at = _FIRST_INITIAL + place
    return node.input[at] if len(node.input) > at else ""


def _fixed(name: str, graph: onnx.GraphProto, depth: int) -> bool | None:
    """False for zeros whatever goes in, True for other constants, None for what depends on the inputs' values."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return bool(np.any(numpy_helper.to_array(tensor)))
    made = next((node for node in graph.node if name in node.output), None)
    if made is None or depth > _DEEPEST:
        return None
    if made.op_type in _FILLED:
        return any(np.any(numpy_helper.to_array(a.t)) for a in made.attribute if a.name == "value")
    if made.op_type in _PASSING and made.input:
        return _fixed(made.input[0], graph, depth + 1)
    return None


def _open(node: onnx.NodeProto, place: int, graph: onnx.GraphProto, name: str) -> dict[str, str]:
    taken = names(graph)
    state, after = _free(name, taken), _free(f"{name}_next", taken)
    node.input.extend([""] * (_FIRST_INITIAL + place + 1 - len(node.input)))
    node.input[_FIRST_INITIAL + place] = state
    node.output.extend([""] * (_FIRST_FINAL + place + 1 - len(node.output)))
    final = node.output[_FIRST_FINAL + place]
    if final:
        graph.node.append(helper.make_node("Identity", [final], [after], name=_free(f"{after}_identity", taken)))
    else:
        node.output[_FIRST_FINAL + place] = after
    shape: list[str | int | None] = [1, "batch", _hidden_size(node)]
    element = TensorProto.FLOAT
    graph.input.append(helper.make_tensor_value_info(state, element, shape))
    graph.output.append(helper.make_tensor_value_info(after, element, shape))
    return {state: after}


def _hidden_size(node: onnx.NodeProto) -> int:
    size = next((a.i for a in node.attribute if a.name == "hidden_size"), None)
    if size is None:
        raise AdoptionError(f"--lift: {node.op_type} {node.name!r} does not say its hidden_size")
    return int(size)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
