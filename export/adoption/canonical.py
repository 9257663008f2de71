"""Rewrites a file into the form that the server runs: one input, one output, states that go in and come out.

In: x (batch, time, F...) float32 or int64, or (batch, time) int64 tokens; states float32 with one axis "batch". Out: y
(batch, time, O...) float32, and the states' next values. The file's own nodes stay as they are; nodes before and behind
them bring the tensors into its order. Array legend: B rows, T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.adoption import carried
from export.adoption.graph_edit import PREFIX, Nodes, names, prune, rename
from export.adoption.opened import Manners, context_axis, opset_of
from export.adoption.plan import BATCH, TIME, Plan, State, Stream
from export.metadata import Document

INNER = f"{PREFIX}inner/"
MAX_LABELS = 4096


@dataclass(frozen=True)
class Canonical:
    """The rewritten graph and what the manifest says of its tensors."""

    proto: onnx.ModelProto
    input: Document
    output: Document
    states: tuple[Document, ...]


def canonicalise(opened: onnx.ModelProto, plan: Plan, manners: Manners) -> Canonical:
    """`opened` as `open_file` gave it; it is left as it is."""
    proto = onnx.ModelProto()
    proto.CopyFrom(opened)
    return _Rewriting(proto, plan, manners).run()


class _Rewriting:
    def __init__(self, proto: onnx.ModelProto, plan: Plan, manners: Manners) -> None:
        self.proto, self.plan, self.manners = proto, plan, manners
        self.before, self.after = Nodes(opset_of(proto)), Nodes(opset_of(proto), f"{PREFIX}after/")
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.states: list[Document] = []
        self.misfits: list[str] = []
        """`(batch, time, 1)`: NaN where whole numbers are wanted and others came, else 0."""
        self.x = plan.inputs[0].name if len(plan.inputs) == 1 else "inputs"
        self.y = plan.outputs[0].name if len(plan.outputs) == 1 else "outputs"

    def run(self) -> Canonical:
        graph = self.proto.graph
        ours = {self.x, self.y, *(info.name for info in (*graph.input, *graph.output)), *self._names_of_states()}
        rename(graph, {name: f"{INNER}{name}" for name in names(graph) & ours})
        x = self._take_input()
        self._take_lengths()
        for state in self.plan.states:
            self._carry_state(state)
        for state in self.plan.once:
            self._keep_once(state)
        y = self._give_output()
        self._assemble()
        return Canonical(self.proto, x, y, tuple(self.states))

    # -- in --------------------------------------------------------------------------------------------------------

    def _take_input(self) -> Document:
        """x -> each data input of the file."""
        streams = self.plan.inputs
        tokens = self.plan.takes_tokens
        dtype = "int64" if tokens else "float32"
        if len(streams) == 1 and (tokens or streams[0].step):
            step: tuple[int, ...] = streams[0].step
            self._feed(streams[0], self.x)
        else:
            widths = [math.prod(stream.step) for stream in streams]
            step = (sum(widths),)
            for end, width, stream in zip(np.cumsum(widths), widths, streams, strict=True):
                part = self.before.slice(self.x, int(end) - width, int(end), 2)
                self._feed(stream, self.before.reshape(part, [0, 0, *stream.step]))
        shape: list[str | int] = [BATCH, TIME, *step]
        self.inputs.insert(0, _info(self.x, dtype, shape))
        kind = "token" if tokens and not step else "value"
        labels = None if len(streams) == 1 else _labels(streams)
        about = {} if tokens else {"description": "; ".join(filter(None, map(_whole_numbers, streams)))}
        return {"name": self.x, "dtype": dtype, "shape": shape, "kind": kind, "labels": labels, **about}

    def _feed(self, stream: Stream, value: str) -> None:
        """(batch, time, ...) -> the input as the file has it."""
        nodes = self.before
        if stream.tensor.is_integer:
            self._watch(stream, value)
        have: list[str | int] = [BATCH, TIME, *range(len(stream.step))]
        for axis in (TIME, BATCH):
            if axis not in stream.order:
                value = nodes.squeeze(value, have.index(axis))
                have.remove(axis)
        value = nodes.transpose(value, [have.index(axis) for axis in stream.order])
        value = nodes.cast(value, stream.tensor.dtype)
        if self.plan.contexts.get(stream.name):
            value = self._join_context(stream, value)
        nodes.add("Identity", [value], INNER + stream.name)

    def _watch(self, stream: Stream, value: str) -> None:
        """A fraction, or a number that the type cannot hold, would be cast to another one without a word."""
        nodes, ours = self.before, np.dtype(np.int64 if self.plan.takes_tokens else np.float32)
        if stream.tensor.dtype == ours:
            return
        held = nodes.cast(nodes.cast(value, stream.tensor.dtype), ours)
        zero, nan = (nodes.scalar(number, np.float32) for number in (0, np.nan))
        each = nodes.add("Where", [nodes.add("Equal", [value, held]), zero, nan])
        self.misfits.append(nodes.sum(nodes.reshape(each, [0, 0, -1]), 2))

    def _join_context(self, stream: Stream, value: str) -> str:
        """The end of the last call's input in front of this call's; this one's end is the next state."""
        size, axis, nodes = self.plan.contexts[stream.name], context_axis(stream, self.plan), self.before
        shape = tuple(BATCH if a == BATCH else 1 if a == TIME else stream.step[int(a)] for a in stream.order)
        shape = (*shape[:axis], size, *shape[axis + 1 :])
        name = f"{stream.name}_context"
        context = self._state_in(name, stream.tensor.dtype, shape)
        joined = nodes.add("Concat", [context, value], axis=axis)
        end = nodes.slice(joined, -size, np.iinfo(np.int64).max, axis)
        self._state_out(f"{name}_next", end, stream.tensor.dtype, shape)
        return joined

    def _take_lengths(self) -> None:
        """How many steps the call has, for each row where the file wants it so."""
        first, nodes = self.plan.inputs[0], self.before
        for tensor in self.plan.lengths:
            inner = INNER + first.name
            steps = nodes.size(inner, first.order.index(TIME)) if TIME in first.order else nodes.constant([1])
            if tensor.axes == ():
                steps = nodes.squeeze(steps, 0)
            elif BATCH in first.order:
                steps = nodes.add("Expand", [steps, nodes.size(inner, first.order.index(BATCH))])
            nodes.add("Identity", [nodes.cast(steps, tensor.dtype)], INNER + tensor.name)

    # -- states ----------------------------------------------------------------------------------------------------

    def _names_of_states(self) -> list[str]:
        contexts = [f"{name}_context" for name in self.plan.contexts]
        return [*contexts, *(f"{name}_next" for name in contexts), *(f"{s.name}_next" for s in self.plan.once)]

    def _carry_state(self, state: State) -> None:
        value = self._state_in(state.name, state.tensor.dtype, state.shape, state.required)
        self.before.add("Identity", [value], INNER + state.name)
        output = state.output if state.output != self.y else f"{state.output}_next"
        self._state_out(output, INNER + state.output, state.tensor.dtype, state.shape)

    def _keep_once(self, state: State) -> None:
        value = self._state_in(state.name, state.tensor.dtype, state.shape, state.required)
        self.before.add("Identity", [value], INNER + state.name)
        self._state_out(f"{state.name}_next", value, state.tensor.dtype, state.shape)

    def _state_in(self, name: str, dtype: np.dtype[Any], shape: tuple[str | int, ...], required: bool = False) -> str:
        """Declare the state and bring it into the file's type and shape."""
        batched = shape if BATCH in shape else (BATCH, *shape)
        ours = carried.shape(batched, dtype)
        self.inputs.append(_info(name, "float32", ours))
        self.states.append({"name": name, "input": name, "dtype": "float32", "shape": list(ours), "required": required})
        value = carried.decode(self.before, name, dtype)
        return value if BATCH in shape else self.before.squeeze(value, 0)

    def _state_out(self, output: str, value: str, dtype: np.dtype[Any], shape: tuple[str | int, ...]) -> None:
        """Give the next value of the state that was declared last."""
        value = value if BATCH in shape else self.after.unsqueeze(value, 0)
        self.after.add("Identity", [carried.encode(self.after, value, dtype)], output)
        self.states[-1]["output"] = output
        self.outputs.append(_info(output, "float32", self.states[-1]["shape"]))

    # -- out -------------------------------------------------------------------------------------------------------

    def _give_output(self) -> Document:
        """The file's outputs -> y, side by side where there are several."""
        streams, nodes = self.manners.outputs, self.after
        values = [self._stretched(stream) for stream in streams]
        if len(streams) == 1:
            step = streams[0].step or (1,)
            value = values[0] if streams[0].step else nodes.unsqueeze(values[0], 2)
        else:
            step = (sum(math.prod(stream.step) for stream in streams),)
            flat = [
                nodes.reshape(v, [0, 0, -1]) if s.step else nodes.unsqueeze(v, 2)
                for v, s in zip(values, streams, strict=True)
            ]
            value = nodes.add("Concat", flat, axis=2)
        for misfit in self.misfits:
            value = nodes.add("Add", [value, nodes.reshape(misfit, [0, 0, *(1 for _ in step)])])
        nodes.add("Identity", [value], self.y)
        shape: list[str | int] = [BATCH, TIME, *step]
        self.outputs.insert(0, _info(self.y, "float32", shape))
        labels = None if len(streams) == 1 else _labels(streams)
        return {"name": self.y, "dtype": "float32", "shape": shape, "labels": labels}

    def _stretched(self, stream: Stream) -> str:
        """The output as (batch, time, ...) float32; one answer for a whole sequence is given at each of its steps."""
        nodes, value = self.after, INNER + stream.name
        order = list(stream.order)
        for axis in (TIME, BATCH):
            if axis not in order:
                value = nodes.unsqueeze(value, 0)
                order.insert(0, axis)
        places = range(len(stream.step))
        value = nodes.transpose(value, [order.index(axis) for axis in (BATCH, TIME, *places)])
        value = self._as_float32(value, stream.tensor.dtype)
        if TIME in stream.order or not self.manners.many_steps:
            return value
        ones = [nodes.constant(np.ones(1, np.int64)) for _ in stream.step]
        shape = nodes.add("Concat", [nodes.constant(np.ones(1, np.int64)), nodes.size(self.x, 1), *ones], axis=0)
        return nodes.add("Expand", [value, shape])

    def _as_float32(self, value: str, dtype: np.dtype[Any]) -> str:
        """Whole numbers are themselves, or NaN where float32 has no such number, never the next one that it has."""
        nodes, rounded = self.after, self.after.cast(value, np.float32)
        if dtype.kind not in "iu" or dtype.itemsize < np.dtype(np.float32).itemsize:
            return rounded
        whole = [nodes.cast(number, np.int64) for number in (rounded, value)]
        return nodes.add("Where", [nodes.add("Equal", whole), rounded, nodes.scalar(np.nan, np.float32)])

    def _assemble(self) -> None:
        graph = self.proto.graph
        nodes = [*self.before.nodes, *graph.node, *self.after.nodes]
        del graph.node[:], graph.input[:], graph.output[:]
        graph.node.extend(nodes)
        graph.initializer.extend([*self.before.constants, *self.after.constants])
        graph.input.extend(self.inputs)
        graph.output.extend(self.outputs)
        prune(graph)


def _whole_numbers(stream: Stream) -> str:
    if stream.bounds is None:
        return ""
    least, most = stream.bounds
    return f"{stream.name}: whole numbers from {least} to {most}; others have no finite result"


def _labels(streams: tuple[Stream, ...]) -> list[str] | None:
    """`logits[2]`, and the bare name where a stream has one value a step."""
    if sum(math.prod(stream.step) for stream in streams) > MAX_LABELS:
        return None
    widths = [(stream.name, math.prod(stream.step)) for stream in streams]
    return [name if width == 1 else f"{name}[{place}]" for name, width in widths for place in range(width)]


def _info(name: str, dtype: str, shape: list[str | int] | tuple[str | int, ...]) -> onnx.ValueInfoProto:
    element = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}[dtype]
    return helper.make_tensor_value_info(name, element, list(shape))
