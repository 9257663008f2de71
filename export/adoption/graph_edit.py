"""Small changes to ONNX graphs: names, nodes in the opset that a file has, and what nothing needs any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from export.adoption.plan import Array

PREFIX = "carousel/"


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, also inside bodies of If, Loop and Scan."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from walk(body)


def names(graph: onnx.GraphProto) -> set[str]:
    """Every name of a tensor, also inside bodies."""
    found = {info.name for side in (graph.input, graph.output) for info in side}
    found |= {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    for node in graph.node:
        found.update(node.input, node.output)
        for body in subgraphs(node):
            found |= names(body)
    return found


def rename(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Give tensors other names, wherever they are used. Bodies see the names around them, so they are renamed too."""
    for info in (*graph.input, *graph.output):
        info.name = new.get(info.name, info.name)
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        tensor.name = new.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        for body in subgraphs(node):
            rename(body, new)


def forget_shapes(graph: onnx.GraphProto) -> None:
    """Drop what the file says of shapes inside: it may speak of sizes that are free now."""
    del graph.value_info[:]
    for node in graph.node:
        for body in subgraphs(node):
            forget_shapes(body)
            for info in body.output:
                if info.type.HasField("tensor_type"):
                    info.type.tensor_type.ClearField("shape")


def prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and initializers that no output needs."""
    needed = {info.name for info in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            for body in subgraphs(node):
                needed |= names(body)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


class Nodes:
    """Nodes and constants to be added to a graph, written for its opset. Every result has a name of our own."""

    def __init__(self, opset: int, prefix: str = PREFIX) -> None:
        self.opset, self.prefix = opset, prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._count = 0

    def add(self, operator: str, inputs: Iterable[str], output: str = "", **attributes: Any) -> str:
        output = output or self._fresh(operator)
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=self._fresh("node"), **attributes))
        return output

    def constant(self, value: Any, name: str = "") -> str:
        name = name or self._fresh("constant")
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def squeeze(self, value: str, axis: int) -> str:
        return self._of_axes("Squeeze", value, axis)

    def unsqueeze(self, value: str, axis: int) -> str:
        return self._of_axes("Unsqueeze", value, axis)

    def sum(self, value: str, axis: int) -> str:
        """Along one axis, which stays, with size 1."""
        return self._of_axes("ReduceSum", value, axis)

    def transpose(self, value: str, order: Sequence[int]) -> str:
        return value if list(order) == sorted(order) else self.add("Transpose", [value], perm=list(order))

    def slice(self, value: str, begin: int, end: int, axis: int) -> str:
        bounds = [self.constant(np.array([number], np.int64)) for number in (begin, end, axis)]
        return self.add("Slice", [value, *bounds])

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """0 keeps a size, -1 takes what is left."""
        return self.add("Reshape", [value, self.constant(np.array(shape, np.int64))])

    def cast(self, value: str, dtype: np.dtype[Any] | type[Any]) -> str:
        return self.add("Cast", [value], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def size(self, value: str, axis: int) -> str:
        """One axis' size, (1,) int64."""
        return self.add("Gather", [self.add("Shape", [value]), self.constant(np.array([axis], np.int64))])

    def scalar(self, value: Any, dtype: Any) -> str:
        array: Array = np.array(value, dtype)
        return self.constant(array)

    def take_last(self, value: str, place: int) -> str:
        """What stands at one place of the last axis, which is gone then."""
        return self.add("Gather", [value, self.scalar(place, np.int64)], axis=-1)

    def _of_axes(self, operator: str, value: str, axis: int) -> str:
        if self.opset < 13:  # axes were an attribute
            return self.add(operator, [value], axes=[axis])
        return self.add(operator, [value, self.constant(np.array([axis], np.int64))])

    def _fresh(self, what: str) -> str:
        self._count += 1
        return f"{self.prefix}{what.lower()}_{self._count}"
