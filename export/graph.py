"""A `SequenceModel` as an ONNX graph, one recurrent operator a layer.

The graph is written node by node instead of traced: torch's exporter bakes the example's length into nn.LSTM, while
here batch and time stay open by construction. Knows no metadata and no files.

Array legend: B rows, T steps, F features, I a layer's inputs, H hidden, L layers, D directions, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from models.sequence_model import SequenceModel

OPSET = 17
IR_VERSION = 8  # the IR of opset 17; a newer one would shut out older onnxruntimes for nothing
OPERATORS = {"rnn": "GRU", "lstm": "LSTM", "gru": "GRU", "gru_cho": "GRU"}

Array = npt.NDArray[Any]


def build_graph(model: SequenceModel) -> onnx.GraphProto:
    """The whole model.

    In: x (batch, time, F) float32 or (batch, time) int64; h[, c] (L*D, batch, H).
    Out: y (batch, time, O); h_next[, c_next] as the states that went in.
    """
    config = model.config
    graph = _Graph()
    x_type = TensorProto.FLOAT
    x_shape: list[str | int | None] = ["batch", "time", config.input_size]
    if config.embedding_size is not None:
        x_type, x_shape = TensorProto.INT64, ["batch", "time"]
    state_shape: list[str | int | None] = [config.layers * config.num_directions, "batch", config.hidden_size]
    features = _features(graph, model)
    features = _layers(graph, model, features)
    _head(graph, model, features)
    value_info = helper.make_tensor_value_info
    return helper.make_graph(
        graph.nodes,
        "carousel",
        [
            value_info("x", x_type, x_shape),
            *(value_info(name, TensorProto.FLOAT, state_shape) for name in model.state_names),
        ],
        [
            value_info("y", TensorProto.FLOAT, ["batch", "time", config.output_size]),
            *(value_info(next_name(name), TensorProto.FLOAT, state_shape) for name in model.state_names),
        ],
        graph.constants,
    )


def next_name(state: str) -> str:
    """Name of the graph output that gives a state's next value."""
    return f"{state}_next"


class _Graph:
    """Nodes and constants in the order in which they were added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, operator: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        self.add_many(operator, inputs, [output], **attributes)
        return output

    def add_many(self, operator: str, inputs: Iterable[str], outputs: list[str], **attributes: Any) -> None:
        node_name = next(name for name in outputs if name)
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, name=node_name, **attributes))


def _features(graph: _Graph, model: SequenceModel) -> str:
    """x -> (T, B, I): onnxruntime's recurrent operators refuse batch-first (`layout=1`)."""
    if model.embedding is not None:
        tokens = graph.add("Transpose", ["x"], "tokens", perm=[1, 0])
        table = graph.constant("embedding", _array(model.embedding.weight))
        return graph.add("Gather", [table, tokens], "embedded", axis=0)
    features = "x"
    mean, std = _array(model.input_mean), _array(model.input_std)
    if mean.any():
        features = graph.add("Sub", [features, graph.constant("input_mean", mean)], "centred")
    if (std != 1).any():
        features = graph.add("Div", [features, graph.constant("input_std", std)], "normalised")
    return graph.add("Transpose", [features], "time_first", perm=[1, 0, 2])


def _layers(graph: _Graph, model: SequenceModel, features: str) -> str:
    """(T, B, I) -> (T, B, D*H), and the next states, (L*D, B, H) each."""
    config = model.config
    D, L = config.num_directions, config.layers
    finals: dict[str, list[str]] = {name: [] for name in model.state_names}
    sizes = graph.constant("layer_rows", np.full(L, D, np.int64)) if L > 1 else ""
    for name in model.state_names if L > 1 else ():
        graph.add_many("Split", [name, sizes], [f"{name}_l{layer}" for layer in range(L)], axis=0)
    for layer in range(L):
        suffix = f"_l{layer}" if L > 1 else ""
        initial = [f"{name}{suffix}" for name in model.state_names]
        final = [f"{next_name(name)}{suffix}" for name in model.state_names]
        for name, value in zip(model.state_names, final, strict=True):
            finals[name].append(value)
        features = _layer(graph, model, layer, features, initial, final)
    for name, values in finals.items() if L > 1 else ():
        graph.add("Concat", values, next_name(name), axis=0)
    return features


def _layer(graph: _Graph, model: SequenceModel, layer: int, features: str, initial: list[str], final: list[str]) -> str:
    config = model.config
    weights = [graph.constant(f"{key}_l{layer}", value) for key, value in layer_weights(model, layer).items()]
    attributes: dict[str, Any] = {"hidden_size": config.hidden_size}
    if config.bidirectional:
        attributes["direction"] = "bidirectional"
    if config.cell == "gru":
        attributes["linear_before_reset"] = 1
    if config.cell == "rnn":
        attributes["activations"] = ["HardSigmoid", "Tanh"] * config.num_directions  # see _rnn_as_gru
    output = f"output_l{layer}"
    no_lengths = ""
    inputs = [features, *weights, no_lengths, *initial]
    graph.add_many(OPERATORS[config.cell], inputs, [output, *final], **attributes)
    # (T, D, B, H) -> (T, B, D*H)
    output = graph.add("Transpose", [output], f"rows_l{layer}", perm=[0, 2, 1, 3])
    if layer == 0:
        graph.constant("directions_joined", np.array([0, 0, config.num_directions * config.hidden_size], np.int64))
    return graph.add("Reshape", [output, "directions_joined"], f"features_l{layer}")


def _head(graph: _Graph, model: SequenceModel, features: str) -> None:
    """(T, B, D*H) -> y (B, T, O)."""
    # y = (W f + b) std + mean as one product; in float64, so that the fold itself rounds once.
    std, mean = _array(model.output_std).astype(np.float64), _array(model.output_mean).astype(np.float64)
    weight = _array(model.head.weight).astype(np.float64) * std[:, None]
    bias = _array(model.head.bias).astype(np.float64) * std + mean
    batch_first = graph.add("Transpose", [features], "features", perm=[1, 0, 2])
    # The weight must be a constant: onnxruntime packs those at load, and the packed product adds each output's terms in
    # one order however many rows there are. Unpacked, a single row takes a path of its own (mlas/lib/sgemm.cpp, M == 1)
    # and rounds otherwise, here and inside LSTM and GRU: `session.disable_prepacking` would break batched == alone.
    product = graph.add(
        "MatMul", [batch_first, graph.constant("head_weight", weight.T.astype(np.float32))], "head_product"
    )
    softmax = model.config.head == "softmax"
    y = graph.add(
        "Add", [product, graph.constant("head_bias", bias.astype(np.float32))], "head_output" if softmax else "y"
    )
    if softmax:
        graph.add("Softmax", [y], "y", axis=-1)


def layer_weights(model: SequenceModel, layer: int) -> dict[str, Array]:
    """One layer's W (D, G*H, I), R (D, G*H, H) and B (D, 2*G*H) in ONNX's gate order; G gates."""
    config = model.config
    stack = model.recurrent
    suffixes = (f"l{layer}", f"l{layer}_reverse")[: config.num_directions]
    directions = [_onnx_gates(config.cell, _torch_weights(stack, suffix)) for suffix in suffixes]
    W, R, B_input, B_state = (np.stack(values) for values in zip(*directions, strict=True))
    return {"W": W, "R": R, "B": np.concatenate([B_input, B_state], axis=1)}


def _torch_weights(stack: nn.Module, suffix: str) -> list[Array]:
    """weight_ih (G*H, I), weight_hh (G*H, H), bias_ih (G*H,), bias_hh (G*H,) in torch's gate order."""
    parameters = dict(stack.named_parameters())
    W, R = _array(parameters[f"weight_ih_{suffix}"]), _array(parameters[f"weight_hh_{suffix}"])
    no_bias = np.zeros(len(W), np.float32)
    biases = [parameters.get(f"{name}_{suffix}") for name in ("bias_ih", "bias_hh")]
    single = parameters.get(f"bias_{suffix}")
    if single is not None:
        biases = [single, None]
    return [W, R, *(no_bias if bias is None else _array(bias) for bias in biases)]


def _onnx_gates(cell: str, weights: list[Array]) -> list[Array]:
    """Reorder the gate blocks: LSTM i f g o -> i o f c; GRU r z n -> z r h."""
    if cell == "rnn":
        return [_rnn_as_gru(weight, is_input_bias=place == 2) for place, weight in enumerate(weights)]
    order = [0, 3, 1, 2] if cell == "lstm" else [1, 0, 2]
    reordered = []
    for weight in weights:
        blocks = np.split(weight, len(order))
        if cell == "gru_cho":
            # ONNX: H = (1 - z) h~ + z H_{t-1}; Cho: h = (1 - z) h_{t-1} + z h~. sigma(-a) = 1 - sigma(a).
            blocks[1] = -blocks[1]
        reordered.append(np.concatenate([blocks[gate] for gate in order]))
    return reordered


def _rnn_as_gru(weight: Array, is_input_bias: bool) -> Array:
    """The RNN's weight as the candidate's, beside gates that stand still: z = 0, r = 1, so H = tanh(W x + R h + b).

    onnxruntime's RNN rounds differently for 1 row and for many (its product takes another path for one row), so
    batched would not equal alone; its GRU does not. HardSigmoid reaches 0 and 1 exactly, so nothing is approximated.
    """
    z, r = np.zeros_like(weight), np.zeros_like(weight)
    if is_input_bias:
        z, r = z - 10, r + 10
    return np.concatenate([z, r, weight])


def _array(tensor: Any) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
