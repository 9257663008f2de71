"""An fp32 model file -> the same model in int8, for onnxruntime's DynamicQuantizeLSTM.

The weights of the recurrent layers become int8, with one scale for each gate unit; their inputs and states become
uint8 inside every run, with one scale for all the values of the run. So rows and steps that run together touch each
other's last digits, which the manifest declares. Embedding, normalisation and head stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.manifest import ExportError
from export.metadata import Document, read_manifest, with_manifest

METHOD = "int8 weights, one scale a gate unit; uint8 activations, scaled in each run (DynamicQuantizeLSTM)"
# 7 bits, not 8: AVX2 adds pairs of uint8 * int8 products in 16 bits, and 2 * 255 * 127 does not fit. Processors without
# VNNI would saturate, with 30 times the error, and answer otherwise than those that have it.
LARGEST = 63


def quantize(data: bytes) -> bytes:
    """The file in int8. Raises ExportError for a model that is not an LSTM."""
    proto = onnx.load_from_string(data)
    manifest = read_manifest(proto)
    if manifest["cell"] != "lstm":
        raise ExportError(
            f"int8 is for LSTM models, and this one's cell is {manifest['cell']!r}: onnxruntime has no int8 kernel for "
            "it. Export it without --quantize, or train it with cell='lstm'"
        )
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "LSTM":
            _quantize_node(node, constants, proto.graph)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    manifest["batch_invariant"] = False
    if manifest.get("max_batch_size") == 1 and manifest["streaming"]:
        manifest["max_chunk_size"] = 1  # steps that run together share a scale too
    manifest["metrics"] = []  # they are the fp32 model's; `describe` brings those measured on this file
    return with_manifest(proto, manifest)


def describe(data: bytes, quantization: Document, metrics: list[Document]) -> bytes:
    """The file with what was measured on it in its manifest."""
    proto = onnx.load_from_string(data)
    return with_manifest(proto, read_manifest(proto) | {"quantization": quantization, "metrics": metrics})


def _quantize_node(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], graph: onnx.GraphProto) -> None:
    """Inputs afterwards: X W R B lengths h c P, then scale and zero point of W and of R."""
    inputs = list(node.input) + [""] * (8 - len(node.input))
    for name in inputs[1:3]:
        values, scale = _quantized(numpy_helper.to_array(constants[name]))
        constants[name].CopyFrom(numpy_helper.from_array(values, name))
        zero_point = np.zeros(scale.shape, np.int8)
        for suffix, value in (("scale", scale), ("zero_point", zero_point)):
            inputs.append(f"{name}_{suffix}")
            graph.initializer.append(numpy_helper.from_array(value, inputs[-1]))
    node.op_type, node.domain = "DynamicQuantizeLSTM", "com.microsoft"
    node.input[:] = inputs


def _quantized(weight: Any) -> tuple[Any, Any]:
    """(D, 4H, I) float32 -> (D, I, 4H) int8, the kernel's order, and its scale (D, 4H)."""
    scale = np.abs(weight).max(axis=2, keepdims=True) / LARGEST
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    values = np.rint(weight / scale).astype(np.int8)
    return np.ascontiguousarray(values.transpose(0, 2, 1)), scale[:, :, 0]
