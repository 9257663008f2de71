"""Bytes of an unknown file -> a model that is worth running; what is absurd is refused before anything runs it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, helper

from export.adoption.graph_edit import subgraphs
from export.adoption.plan import AdoptionError

MAX_NODES = 50_000
MAX_DEPTH = 8
MAX_ELEMENTS = 2**31
MAX_NAME = 1000
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8}


def read(data: bytes) -> onnx.ModelProto:
    """Raises AdoptionError for what is no model, keeps data elsewhere, or is larger than any that can be served."""
    try:
        proto = onnx.load_from_string(data)
    except DecodeError as error:
        raise AdoptionError("it is no ONNX file, or a damaged one") from error
    if not proto.HasField("graph") or not proto.graph.node:
        raise AdoptionError("it is no ONNX file, or one without a graph")
    _check_functions(proto)
    bodies = [*_bodies(proto.graph), *(function for function in proto.functions)]
    num_nodes = sum(len(body.node) for body in bodies)
    if num_nodes > MAX_NODES:
        raise AdoptionError(f"it has {num_nodes:,} nodes; expected at most {MAX_NODES:,}")
    for tensor in tensors(proto):
        _check_tensor(tensor)
    return proto


def _bodies(graph: onnx.GraphProto, depth: int = 0) -> Iterator[onnx.GraphProto]:
    if depth > MAX_DEPTH:
        raise AdoptionError(f"its If, Loop and Scan are nested more than {MAX_DEPTH} deep")
    yield graph
    for node in graph.node:
        if any(len(name) > MAX_NAME for name in (node.name, node.op_type, *node.input, *node.output)):
            raise AdoptionError(f"a name in it is longer than {MAX_NAME} characters")
        for body in subgraphs(node):
            yield from _bodies(body, depth + 1)


def _check_functions(proto: onnx.ModelProto) -> None:
    """Functions are put in place of their calls: one that calls itself never ends, a tower of them grows too large."""
    functions = {(function.domain, function.name): function for function in proto.functions}
    sizes: dict[tuple[str, str], float] = {}

    def size(key: tuple[str, str], above: tuple[tuple[str, str], ...]) -> float:
        if key in above or len(above) > MAX_DEPTH:
            raise AdoptionError(f"its function {key[1]!r} calls itself, or functions are nested too deep")
        if key not in sizes:
            calls = ((node.domain, node.op_type) for node in functions[key].node)
            sizes[key] = sum(size(call, (*above, key)) if call in functions else 1 for call in calls)
        return sizes[key]

    if any(size(key, ()) > MAX_NODES for key in functions):
        raise AdoptionError(f"its functions unfold to more than {MAX_NODES:,} nodes")


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant of the file, wherever it stands."""
    for graph in _bodies(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _of_nodes(graph.node)
    for function in proto.functions:
        yield from _of_nodes(function.node)


def _of_nodes(nodes: object) -> Iterator[onnx.TensorProto]:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def _check_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        raise AdoptionError(
            f"{tensor.name!r} keeps its data in another file, {where[:100]!r}, which is not read. Save it as one: "
            "onnx.save(onnx.load(path), path, save_as_external_data=False)"
        )
    elements = math.prod(tensor.dims)
    if any(size < 0 for size in tensor.dims) or elements > MAX_ELEMENTS:
        raise AdoptionError(f"{tensor.name!r} has the absurd shape {list(tensor.dims)[:8]}")
    if tensor.HasField("raw_data"):
        try:
            item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        except (KeyError, TypeError) as error:
            raise AdoptionError(f"{tensor.name!r} has elements of the unknown type {tensor.data_type}") from error
        packed = tensor.data_type in _HALF_BYTES
        expected = (elements + 1) // 2 if packed else elements * item
        if len(tensor.raw_data) != expected:
            raise AdoptionError(f"{tensor.name!r} is {list(tensor.dims)[:8]}, but has {len(tensor.raw_data)} bytes")


_HALF_BYTES = {getattr(TensorProto, name) for name in ("INT4", "UINT4", "FLOAT4E2M1") if hasattr(TensorProto, name)}
