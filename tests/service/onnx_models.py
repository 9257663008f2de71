"""Tiny ONNX models with obvious answers, written as the exporter writes them: graph plus manifest in the metadata.

Each function writes `<root>/<name>/<version>/model.onnx` and returns that path. Further keywords go into the manifest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 9


def running_sum(
    root: Path,
    name: str = "running-sum",
    version: int = 1,
    *,
    features: int = 1,
    dtype: str = "float32",
    **manifest: Any,
) -> Path:
    """y_t = h_t = h_{t-1} + x_t, exact for small integers. State `h` (1, F), input of `dtype` and output (T, F)."""
    casts = dtype != "float32"
    nodes = [
        *([helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT)] if casts else []),
        helper.make_node("CumSum", ["numbers" if casts else "x", "one"], ["sums"]),
        helper.make_node("Transpose", ["h"], ["h_by_batch"], perm=[1, 0, 2]),
        helper.make_node("Add", ["sums", "h_by_batch"], ["y"]),
        *_last_step("y", "h_next"),
    ]
    states = [_state("h", 1, features)]
    document = _manifest(name, [features], [features], states, cell="sum", hidden_size=features, **manifest)
    document["inputs"][0]["dtype"] = dtype
    return publish(root, name, version, _model(nodes, [_const("one", np.int64(1)), *_LAST], document), document)


def stateless(root: Path, name: str = "stateless", version: int = 1) -> Path:
    """y is the running sum of x, seen in one piece."""
    nodes = [helper.make_node("CumSum", ["x", "one"], ["y"])]
    document = _manifest(name, [1], [1], [], cell="sum", streaming=False)
    return publish(root, name, version, _model(nodes, [_const("one", np.int64(1))], document), document)


def token_counts(
    root: Path,
    name: str = "token-counts",
    version: int = 1,
    *,
    vocabulary: str = "abcde",
    spelled: bool = True,
    kind: str = "logit",
    **manifest: Any,
) -> Path:
    """y_t = how often each token was seen so far. State `h` (1, V), input (T,) int64, output (T, V) of `kind`.

    Not `spelled`, the manifest has no vocabulary, and tells how many tokens there are.
    """
    size = len(vocabulary)
    nodes = [
        helper.make_node("Gather", ["eye", "x"], ["one_hot"]),
        helper.make_node("CumSum", ["one_hot", "one"], ["sums"]),
        helper.make_node("Transpose", ["h"], ["h_by_batch"], perm=[1, 0, 2]),
        helper.make_node("Add", ["sums", "h_by_batch"], ["y"]),
        *_last_step("y", "h_next"),
    ]
    consts = [_const("one", np.int64(1)), _const("eye", np.eye(size, dtype=np.float32)), *_LAST]
    fields = {"task": "language-model", "cell": "count", "hidden_size": size, "vocabulary": vocabulary, **manifest}
    document = _manifest(name, [], [size], [_state("h", 1, size)], **fields)
    document["outputs"][0]["kind"] = kind
    if not spelled:
        del document["inputs"][0]["vocabulary"]
        document["inputs"][0]["token_counts"] = [size]
    return publish(root, name, version, _model(nodes, consts, document), document)


def guided(root: Path, name: str = "guided", version: int = 1) -> Path:
    """y_t = h_t = h_{t-1} + x_t + g, where `g` (1, 1) is given when a sequence begins and stays."""
    nodes = [
        helper.make_node("Transpose", ["g"], ["g_by_batch"], perm=[1, 0, 2]),
        helper.make_node("Add", ["x", "g_by_batch"], ["guided"]),
        helper.make_node("CumSum", ["guided", "one"], ["sums"]),
        helper.make_node("Transpose", ["h"], ["h_by_batch"], perm=[1, 0, 2]),
        helper.make_node("Add", ["sums", "h_by_batch"], ["y"]),
        helper.make_node("Identity", ["g"], ["g_next"]),
        *_last_step("y", "h_next"),
    ]
    states = [_state("h", 1, 1), {**_state("g", 1, 1), "required": True}]
    document = _manifest(name, [1], [1], states, cell="sum")
    return publish(root, name, version, _model(nodes, [_const("one", np.int64(1)), *_LAST], document), document)


def lstm(
    root: Path,
    name: str = "lstm",
    version: int = 1,
    *,
    features: int = 3,
    hidden: int = 8,
    outputs: int = 2,
    layers: int = 1,
    bidirectional: bool = False,
    seed: int = 0,
    **manifest: Any,
) -> Path:
    """A stack of LSTM operators and a linear head, random weights. States `h` and `c` (L * directions, H)."""
    rng, directions = np.random.default_rng(seed), 2 if bidirectional else 1
    nodes = [helper.make_node("Transpose", ["x"], ["layer0"], perm=[1, 0, 2])]
    consts, width, ends = [_const("merged", np.array([0, 0, -1]))], features, {"h": [], "c": []}
    for n in range(layers):
        shapes = {"W": (directions, 4 * hidden, width), "R": (directions, 4 * hidden, hidden)}
        consts += [_const(f"{k}{n}", rng.normal(0, 0.3, shape).astype(np.float32)) for k, shape in shapes.items()]
        first, last = n * directions, (n + 1) * directions
        consts += [_const(f"first{n}", np.array([first])), _const(f"last{n}", np.array([last]))]
        nodes += [helper.make_node("Slice", [s, f"first{n}", f"last{n}"], [f"{s}{n}"]) for s in ends]
        ins = [f"layer{n}", f"W{n}", f"R{n}", "", "", f"h{n}", f"c{n}"]
        outs = [f"Y{n}", f"h_end{n}", f"c_end{n}"]
        direction = "bidirectional" if bidirectional else "forward"
        nodes.append(helper.make_node("LSTM", ins, outs, hidden_size=hidden, direction=direction))
        nodes.append(helper.make_node("Transpose", [f"Y{n}"], [f"T{n}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"T{n}", "merged"], [f"layer{n + 1}"]))
        width = directions * hidden
        for s, names in ends.items():
            names.append(f"{s}_end{n}")
    nodes += [helper.make_node("Concat", names, [f"{s}_next"], axis=0) for s, names in ends.items()]
    consts.append(_const("head", rng.normal(0, 0.3, (width, outputs)).astype(np.float32)))
    nodes.append(helper.make_node("MatMul", [f"layer{layers}", "head"], ["by_time"]))
    nodes.append(helper.make_node("Transpose", ["by_time"], ["y"], perm=[1, 0, 2]))
    states = [_state(s, layers * directions, hidden) for s in ends]
    fields = {"layers": layers, "bidirectional": bidirectional, "streaming": not bidirectional, **manifest}
    document = _manifest(name, [features], [outputs], states, cell="lstm", hidden_size=hidden, **fields)
    return publish(root, name, version, _model(nodes, consts, document), document)


def shapes(root: Path, name: str = "shapes", version: int = 1, *, features: int = 2) -> Path:
    """y_t is the running sum of x. States of two and of four axes hold it, `a` (F,) and `b` (2, 3, F)."""
    nodes = [
        helper.make_node("CumSum", ["x", "one"], ["sums"]),
        helper.make_node("Unsqueeze", ["a", "axis"], ["a_by_time"]),
        helper.make_node("Add", ["sums", "a_by_time"], ["y"]),
        helper.make_node("Slice", ["y", "last_first", "last_end", "axis"], ["last_y"]),
        helper.make_node("Squeeze", ["last_y", "axis"], ["a_next"]),
        helper.make_node("Slice", ["sums", "last_first", "last_end", "axis"], ["last_sum"]),
        helper.make_node("Add", ["b", "last_sum"], ["b_next"]),
    ]
    states = [
        {"name": "a", "input": "a", "output": "a_next", "shape": ["batch", features]},
        {"name": "b", "input": "b", "output": "b_next", "shape": [2, "batch", 3, features]},
    ]
    document = _manifest(name, [features], [features], states, cell="sum")
    return publish(root, name, version, _model(nodes, [_const("one", np.int64(1)), *_LAST], document), document)


def gru(root: Path, name: str = "gru", version: int = 1, *, hidden: int = 8, linear_before_reset: int = 1) -> Path:
    """One GRU operator, random weights. State `h` (1, H), input (T, 3), output (T, H)."""
    rng = np.random.default_rng(1)
    shapes = {"W": (1, 3 * hidden, 3), "R": (1, 3 * hidden, hidden)}
    consts = [_const(name, rng.normal(0, 0.3, shape).astype(np.float32)) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Transpose", ["x"], ["by_time"], perm=[1, 0, 2]),
        helper.make_node(
            "GRU",
            ["by_time", "W", "R", "", "", "h"],
            ["Y", "h_next"],
            hidden_size=hidden,
            linear_before_reset=linear_before_reset,
        ),
        helper.make_node("Squeeze", ["Y", "axis"], ["squeezed"]),
        helper.make_node("Transpose", ["squeezed"], ["y"], perm=[1, 0, 2]),
    ]
    document = _manifest(name, [3], [hidden], [_state("h", 1, hidden)], cell="gru", hidden_size=hidden)
    return publish(root, name, version, _model(nodes, [*consts, _LAST[2]], document), document)


def publish(root: Path, name: str, version: int, model: onnx.ModelProto, manifest: dict[str, Any] | None) -> Path:
    """Write the file, with the manifest in it unless that is None."""
    path = root / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    if manifest is not None:
        helper.set_model_props(model, {"carousel": json.dumps(manifest)})
    path.write_bytes(model.SerializeToString())
    return path


def _manifest(
    name: str, input_size: list[int], output_size: list[int], states: list[dict[str, Any]], **fields: Any
) -> dict[str, Any]:
    vocabulary = fields.pop("vocabulary", None)
    tokens = {"kind": "token", "vocabulary": list(vocabulary)} if vocabulary else {}
    x = {"name": "x", "dtype": "int64" if vocabulary else "float32", "shape": ["batch", "time", *input_size], **tokens}
    y = {"name": "y", "dtype": "float32", "shape": ["batch", "time", *output_size]}
    base = {"format": 1, "name": name, "task": "regression", "layers": 1, "parameters": 0, "streaming": True}
    return {**base, "inputs": [x], "outputs": [y], "states": states, "created_at": "2026-01-01T00:00:00Z", **fields}


def _state(name: str, layers: int, hidden: int) -> dict[str, Any]:
    return {"name": name, "input": name, "output": f"{name}_next", "shape": [layers, "batch", hidden]}


def _const(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


_LAST = [_const("last_first", np.array([-1])), _const("last_end", np.array([2**31 - 1])), _const("axis", np.array([1]))]


def _last_step(sums: str, state: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Slice", [sums, "last_first", "last_end", "axis"], ["last_step"]),
        helper.make_node("Transpose", ["last_step"], [state], perm=[1, 0, 2]),
    ]


def _model(nodes: list[onnx.NodeProto], consts: list[onnx.TensorProto], manifest: dict[str, Any]) -> onnx.ModelProto:
    x, y = manifest["inputs"][0], manifest["outputs"][0]
    x_type = TensorProto.INT64 if x["dtype"] == "int64" else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", x_type, x["shape"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, y["shape"])]
    for state in manifest["states"]:
        inputs.append(helper.make_tensor_value_info(state["input"], TensorProto.FLOAT, state["shape"]))
        outputs.append(helper.make_tensor_value_info(state["output"], TensorProto.FLOAT, state["shape"]))
    proto = helper.make_graph(nodes, manifest["name"], inputs, outputs, consts)
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
