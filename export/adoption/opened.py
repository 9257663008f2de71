"""A file as it is, opened: axes that rows and steps may fill are left free.

Between what was read of a file and its canonical form stands what only running it can tell: how many rows and steps
one run takes, and where its outputs have their axes. Array legend: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper, version_converter

from export.adoption.graph_edit import forget_shapes
from export.adoption.plan import BATCH, TIME, AdoptionError, Array, Plan, Stream, Tensor, one_line

MIN_OPSET, NEW_OPSET = 11, 17
IR_VERSION = 8
"""At least: before 4, initializers had to be inputs too."""
_SEVERITY_FATAL = 4


@dataclass(frozen=True)
class Manners:
    """How the file behaves when it runs."""

    outputs: tuple[Stream, ...]
    many_rows: bool
    many_steps: bool
    """False also where a call of several steps has one answer: then each step is a call."""


def open_file(proto: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """A copy whose data and states have free axes for rows and steps."""
    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    opened.ir_version = max(opened.ir_version, IR_VERSION)
    del opened.metadata_props[:]
    graph = opened.graph
    forget_shapes(graph)
    kept = [info for info in graph.input if info.name in _fed(plan)]
    del graph.input[:]
    graph.input.extend(_freed(info, plan) for info in kept)
    for info in graph.output:
        info.type.tensor_type.ClearField("shape")
    return opened


def put_constants(proto: onnx.ModelProto, values: Mapping[str, Array]) -> None:
    """Give inputs fixed values; those with a default keep it. Raises AdoptionError where there is no such input."""
    inputs = {info.name: info for info in proto.graph.input}
    for name, value in values.items():
        if name not in inputs:
            raise AdoptionError(f"--constant {name}: there is no such input; the file has {', '.join(inputs)}")
        proto.graph.initializer.append(numpy_helper.from_array(_constant(Tensor.of(inputs[name]), value), name))
    fixed = {tensor.name for tensor in proto.graph.initializer}
    kept = [info for info in proto.graph.input if info.name not in fixed]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)


def _constant(tensor: Tensor, value: Array) -> Array:
    """The value as the input takes it; one number fills an input whose sizes are fixed. Raises AdoptionError."""
    axes = tensor.axes
    if value.ndim == 0 and axes and all(isinstance(axis, int) for axis in axes):
        value = np.full([int(axis) for axis in axes if axis is not None], value)
    if axes is not None and value.ndim != len(axes):
        raise AdoptionError(f"--constant {tensor.name}: it has {len(axes)} axes, the value has {value.ndim}")
    with np.errstate(invalid="ignore"):
        array: Array = value.astype(tensor.dtype)
    if tensor.is_integer and not np.array_equal(array, value):
        raise AdoptionError(f"--constant {tensor.name}: it takes {tensor.dtype}, and the value does not fit into that")
    return array


def opset_of(proto: onnx.ModelProto) -> int:
    return max((int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def modern(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in an opset that can be rewritten. Raises AdoptionError where ONNX cannot convert it."""
    version = opset_of(proto)
    if version >= MIN_OPSET:
        return proto
    try:
        return version_converter.convert_version(proto, NEW_OPSET)
    except Exception as error:  # RuntimeError and what C++ raises besides
        raise AdoptionError(f"it is of opset {version}, and cannot be converted: {one_line(error)}") from error


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Raises AdoptionError with onnxruntime's reason."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _SEVERITY_FATAL
    try:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class of its own for each cause, all unrelated
        raise AdoptionError(f"onnxruntime cannot load it: {one_line(error)}") from error


def find_manners(opened: onnxruntime.InferenceSession, plan: Plan) -> Manners:
    """Run it with 1 and 2 rows, 1 and 3 steps, from zeros. Raises AdoptionError when not even one step runs."""
    one = _run(opened, plan, 1, 1)
    if isinstance(one, Exception):
        raise AdoptionError(
            f"a run of one row and one step fails: {one_line(one)}. If the axes were misread, say --shape"
        )
    _check_states(one, plan, 1)
    rows = _run_more(opened, plan, 2, 1) if plan.has_batch and all(BATCH in s.shape for s in plan.states) else None
    steps = _run_more(opened, plan, 1, 3) if plan.has_time else None
    outputs = tuple(_output(tensor, one[tensor.name], rows, steps, plan.has_time) for tensor in plan.outputs)
    answers_each_step = all(TIME in stream.order for stream in outputs)
    carries = bool(plan.states or any(plan.contexts.values()))
    many_steps = steps is not None and (answers_each_step or not carries)
    return Manners(outputs, many_rows=rows is not None, many_steps=many_steps)


def _fed(plan: Plan) -> set[str]:
    streams, states = [s.name for s in plan.inputs], [s.name for s in (*plan.states, *plan.once)]
    return {*streams, *states, *(tensor.name for tensor in plan.lengths)}


def _freed(info: onnx.ValueInfoProto, plan: Plan) -> onnx.ValueInfoProto:
    """The input with sizes where they are fixed and names where they are free; lengths have none."""
    element = info.type.tensor_type.elem_type
    for stream in plan.inputs:
        if stream.name == info.name:
            fixed = not plan.contexts.get(stream.name)  # with a context the model sees more than a step
            free = [axis if isinstance(axis, str) else stream.step[axis] if fixed else None for axis in stream.order]
            return helper.make_tensor_value_info(info.name, element, free)
    for state in (*plan.states, *plan.once):
        if state.name == info.name:
            return helper.make_tensor_value_info(info.name, element, state.shape)
    return helper.make_tensor_value_info(info.name, element, [None] * _rank(info))


def _rank(info: onnx.ValueInfoProto) -> int:
    return len(info.type.tensor_type.shape.dim)


def zeros(plan: Plan, B: int, T: int) -> dict[str, Array]:
    """Feeds of a run from the beginning, zeros all, lengths as they are."""
    feeds: dict[str, Array] = {}
    for stream in plan.inputs:
        shape = list(stream.sizes(B, T))
        if context := plan.contexts.get(stream.name):
            shape[context_axis(stream, plan)] += context
        feeds[stream.name] = np.zeros(shape, stream.tensor.dtype)
    for state in (*plan.states, *plan.once):
        feeds[state.name] = np.zeros(state.sizes(B), state.tensor.dtype)
    first = plan.inputs[0]
    steps = feeds[first.name].shape[first.order.index(TIME)] if TIME in first.order else 1
    for tensor in plan.lengths:
        feeds[tensor.name] = np.full([] if tensor.axes == () else [B], steps, tensor.dtype)
    return feeds


def context_axis(stream: Stream, plan: Plan) -> int:
    """Where the end of the last call goes in front: along the time, or where a call is a step, the values."""
    return stream.order.index(TIME) if TIME in stream.order else len(stream.order) - 1


def _run(opened: onnxruntime.InferenceSession, plan: Plan, B: int, T: int) -> dict[str, Array] | Exception:
    names = [*(tensor.name for tensor in plan.outputs), *(state.output for state in plan.states)]
    try:
        results: Sequence[Any] = opened.run(names, zeros(plan, B, T))
    except Exception as error:  # whatever onnxruntime raises says that these sizes do not run
        return error
    return dict(zip(names, results, strict=True))


def _run_more(opened: onnxruntime.InferenceSession, plan: Plan, B: int, T: int) -> dict[str, Array] | None:
    """None where so many do not run, or leave states of another size."""
    results = _run(opened, plan, B, T)
    if isinstance(results, Exception):
        return None
    return results if all(results[state.output].shape == state.sizes(B) for state in plan.states) else None


def _check_states(results: dict[str, Array], plan: Plan, B: int) -> None:
    for state in plan.states:
        if (found := results[state.output].shape) != state.sizes(B):
            raise AdoptionError(
                f"{state.output!r} came out as {list(found)}, and state {state.name!r} is {list(state.sizes(B))}: it "
                "is no next value of it, or it grows with every call, as attention's caches do; those cannot be carried"
            )


def _output(
    tensor: Tensor, one: Array, rows: dict[str, Array] | None, steps: dict[str, Array] | None, has_time: bool
) -> Stream:
    """Where the output has rows and steps: the axes that grow with them, or of size 1 where neither can grow."""
    time = _grown(tensor, one, steps[tensor.name], 3) if steps else None
    batch = _grown(tensor, one, rows[tensor.name], 2) if rows else None
    if rows is None:
        batch = next((n for n, size in enumerate(one.shape) if size == 1 and n != time), None)
    if steps is None and has_time:
        time = next((n for n, size in enumerate(one.shape) if size == 1 and n != batch), None)
    order: list[str | int] = []
    step: list[int] = []
    for place, size in enumerate(one.shape):
        if place in (batch, time):
            order.append(BATCH if place == batch else TIME)
        else:
            order.append(len(step))
            step.append(size)
    return Stream(tensor, tuple(order), tuple(step))


def _grown(tensor: Tensor, one: Array, more: Array, count: int) -> int | None:
    """The one axis that is `count` times as long, None where there is none."""
    if one.ndim != more.ndim:
        raise AdoptionError(f"output {tensor.name!r} has {one.ndim} axes or {more.ndim}, by the sizes of its inputs")
    grown = [place for place, (a, b) in enumerate(zip(one.shape, more.shape, strict=True)) if a != b]
    if not grown:
        return None
    if len(grown) > 1 or more.shape[grown[0]] != count * one.shape[grown[0]] or one.shape[grown[0]] != 1:
        raise AdoptionError(
            f"output {tensor.name!r} goes from {list(one.shape)} to {list(more.shape)} for {count} times the rows or "
            "steps: it has not one value a step. Leave it out: name the others with --output"
        )
    return grown[0]
