"""A file's inputs and outputs -> a plan that says what each is; what it cannot tell, it asks for.

Array legend: B rows, T steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx

from export.adoption.pairs import find_pair, fits
from export.adoption.plan import BATCH, TIME, AdoptionError, Axes, Axis, Plan, State, Stream, Tensor, Wishes

MAX_TENSORS = 256
_BATCH_NAME = re.compile(r"n|b|bs|.*batch.*|num_?streams?", re.IGNORECASE)
_TIME_NAME = re.compile(r"t|l|.*time.*|.*seq.*|.*frames?.*|.*steps?.*|.*length.*", re.IGNORECASE)
_LENGTH_NAME = re.compile(r"(.*[^a-z])?(seq(uence)?_)?(len|lens|length|lengths)", re.IGNORECASE)


def inspect(proto: onnx.ModelProto, wishes: Wishes) -> Plan:
    """Raises AdoptionError where a tensor's part stays unclear; the message proposes what to say."""
    inputs, outputs = _tensors(proto)
    _check_names(wishes, inputs, outputs)
    left = dict(inputs)
    once = tuple(_once(left.pop(name), wishes) for name in wishes.once)
    lengths = tuple(left.pop(tensor.name) for tensor in list(left.values()) if _is_length(tensor, wishes))
    states = _states(left, outputs, wishes)
    for state in states:
        del left[state.name]
    _check_scalars(left.values())
    _check_data(left, outputs, states, wishes)
    plan = Plan(
        inputs=tuple(_stream(tensor, wishes) for tensor in left.values()),
        outputs=_data_outputs(outputs, states, wishes),
        states=states,
        once=once,
        lengths=lengths,
        contexts=dict(wishes.contexts),
    )
    _check_contexts(plan, inputs, wishes)
    return plan


def _tensors(proto: onnx.ModelProto) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs that have no default, and outputs."""
    graph = proto.graph
    given = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    asked = [info for info in graph.input if info.name not in given]
    if max(len(asked), len(graph.output)) > MAX_TENSORS:
        raise AdoptionError(f"{len(asked)} inputs and {len(graph.output)} outputs are more than {MAX_TENSORS}")
    sides = [{info.name: Tensor.of(info) for info in side} for side in (asked, graph.output)]
    for side, what in zip(sides, ("input", "output"), strict=True):
        if not side:
            raise AdoptionError(f"the graph has no {what}")
    return sides[0], sides[1]


def _check_names(wishes: Wishes, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    asked_in = [*wishes.states, *wishes.contexts, *wishes.once, *wishes.given, *wishes.lengths, *wishes.shapes]
    asked_in += [*wishes.batch_axes, *wishes.time_axes]
    asked_out = [*wishes.states.values(), *wishes.outputs]
    for what, asked, have in (("input", asked_in, inputs), ("output", asked_out, outputs)):
        for name in asked:
            if name not in have:
                raise AdoptionError(f"there is no {what} {name!r}; the file has {', '.join(map(repr, have))}")
    for name in wishes.data:
        if name not in inputs and name not in outputs:
            raise AdoptionError(f"--data {name}: the file has no tensor of that name")


# -- states --------------------------------------------------------------------------------------------------------


def _states(left: dict[str, Tensor], outputs: dict[str, Tensor], wishes: Wishes) -> tuple[State, ...]:
    pairs: dict[str, tuple[str, str]] = {name: (out, "you said so") for name, out in wishes.states.items()}
    free = [name for name in outputs if name not in {*wishes.states.values(), *wishes.outputs, *wishes.data}]
    for name in left:
        if name in pairs or name in wishes.data:
            continue
        found = find_pair(name, free)
        if found and fits(left[name], outputs[found[0]]):
            pairs[name] = found
    _check_once_each(pairs)
    _keep_data(pairs, left, outputs)
    for name, (output, _) in pairs.items():
        if not fits(left[name], outputs[output]):
            raise AdoptionError(
                f"{output!r} cannot be the next {name!r}: {_say(outputs[output])} is not {_say(left[name])}"
            )
    return tuple(_state(left[name], output, reason, wishes) for name, (output, reason) in pairs.items())


def _check_once_each(pairs: dict[str, tuple[str, str]]) -> None:
    taken: dict[str, str] = {}
    for name, (output, _) in pairs.items():
        if output in taken:
            raise AdoptionError(
                f"output {output!r} would be the next value of both {taken[output]!r} and {name!r}; say which: "
                f"--state {name}={output}, or --data {name}"
            )
        taken[output] = name


def _keep_data(pairs: dict[str, tuple[str, str]], left: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    """Something goes in and something comes out besides states: names that leave no data named data, not a state."""
    if pairs and (len(pairs) == len(left) or len(pairs) == len(outputs)):
        raise AdoptionError(
            "by their names all inputs or outputs would be states: "
            + ", ".join(f"{name} -> {output}" for name, (output, _) in pairs.items())
            + ". Say which are data: --data NAME"
        )


def _state(tensor: Tensor, output: str, reason: str, wishes: Wishes) -> State:
    axes = wishes.shapes.get(tensor.name, tensor.axes)
    if axes is None:
        raise AdoptionError(_unshaped(tensor, "2,batch,128"))
    batch = wishes.batch_axes[tensor.name] if tensor.name in wishes.batch_axes else _batch_of_state(axes)
    shape: list[str | int] = [BATCH if place == batch else _size(tensor, axis, axes) for place, axis in enumerate(axes)]
    required = tensor.name in (*wishes.once, *wishes.given)
    return State(tensor, output, tuple(shape), reason, required)


def _once(tensor: Tensor, wishes: Wishes) -> State:
    return _state(tensor, tensor.name, "given once, when a sequence begins", wishes)


def _batch_of_state(axes: Axes) -> int | None:
    """By name, else the first axis without a size, else one of size 1: the middle of three, as ONNX has h."""
    named = [place for place, axis in enumerate(axes) if isinstance(axis, str) and _BATCH_NAME.fullmatch(axis)]
    unsized = [place for place, axis in enumerate(axes) if not isinstance(axis, int)]
    ones = [place for place, axis in enumerate(axes) if axis == 1]
    if len(axes) == 3 and 1 in ones:
        ones = [1]
    return next((places[0] for places in (named, unsized, ones) if places), None)


def _size(tensor: Tensor, axis: Axis, axes: Axes) -> int:
    if isinstance(axis, int):
        return axis
    raise AdoptionError(
        f"{tensor.name!r} has the shape {_show(axes)}, and the size of {axis or '?'} is not in the file. A state whose "
        f"size grows cannot be carried; if it is fixed, say it: --shape {tensor.name}=" + ",".join(_guess(axes))
    )


# -- data ----------------------------------------------------------------------------------------------------------


def _is_length(tensor: Tensor, wishes: Wishes) -> bool:
    if tensor.name in wishes.lengths:
        return True
    rank = len(tensor.axes) if tensor.axes is not None else -1
    named = _LENGTH_NAME.fullmatch(tensor.name) and tensor.dtype.kind in "iu" and rank in (0, 1)
    return bool(named) and tensor.name not in (*wishes.data, *wishes.states)


def _check_scalars(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        if tensor.axes == ():
            raise AdoptionError(
                f"input {tensor.name!r} is one {tensor.dtype} for the whole call; say its value: "
                f"--constant {tensor.name}=..."
            )


def _check_data(left: dict[str, Tensor], outputs: dict[str, Tensor], states: tuple[State, ...], wishes: Wishes) -> None:
    """More than one data input is served as one, side by side: only where that is likely to be meant."""
    if not left:
        raise AdoptionError("no input is left for the data: name it with --data")
    same_tokens = all(t.is_integer for t in left.values()) and len({t.axes for t in left.values()}) == 1
    if len(left) == 1 or same_tokens or set(left) <= set(wishes.data):
        return
    used = {state.output for state in states}
    free = [tensor for tensor in outputs.values() if tensor.name not in used]
    likely = [f"--state {a.name}={b.name}" for a in left.values() for b in free if fits(a, b)]
    raise AdoptionError(
        f"what are {', '.join(f'{t.name} {_say(t)}' for t in left.values())}? Names do not tell. Say which is a state "
        "(--state in=out), a constant (--constant), given once a sequence (--once) or data (--data)"
        + (f". Of one shape, which proves nothing: {', '.join(likely[:6])}" if likely else "")
    )


def _data_outputs(outputs: dict[str, Tensor], states: tuple[State, ...], wishes: Wishes) -> tuple[Tensor, ...]:
    used = {state.output for state in states}
    found = [outputs[name] for name in wishes.outputs] or [t for t in outputs.values() if t.name not in used]
    if not found:
        raise AdoptionError("every output is a state; say which is also to be put out: --output NAME")
    return tuple(found)


def _stream(tensor: Tensor, wishes: Wishes) -> Stream:
    axes = wishes.shapes.get(tensor.name, tensor.axes)
    if axes is None:
        raise AdoptionError(_unshaped(tensor, "batch,time,40"))
    batch, time, why = _batch_and_time(tensor, axes, wishes)
    order: list[str | int] = []
    step: list[int] = []
    for place, axis in enumerate(axes):
        if place in (batch, time):
            order.append(BATCH if place == batch else TIME)
        elif isinstance(axis, int):
            order.append(len(step))
            step.append(axis)
        else:
            raise AdoptionError(
                f"how many values has a step of {tensor.name!r}, of the shape {_show(axes)}? Say the size: "
                f"--shape {tensor.name}=" + ",".join(_guess(axes))
            )
    return Stream(tensor, tuple(order), tuple(step), why)


def _batch_and_time(tensor: Tensor, axes: Axes, wishes: Wishes) -> tuple[int | None, int | None, str]:
    """Places of the two axes: as said, as named, else as is usual."""
    named_batch = _first(axes, _BATCH_NAME)
    named_time = _first(axes, _TIME_NAME, besides=named_batch)
    said = tensor.name in wishes.batch_axes or tensor.name in wishes.time_axes or tensor.name in wishes.shapes
    time = wishes.time_axes.get(tensor.name, named_time)
    batch = wishes.batch_axes.get(tensor.name, named_batch)
    if tensor.name in wishes.shapes:
        return batch, time, "you said so"
    if batch is None and tensor.name not in wishes.batch_axes and time != 0 and axes and axes[0] in (None, 1):
        batch = 0
    if time is None and tensor.name not in wishes.time_axes and batch == 0 and _has_time(tensor, axes):
        _check_time(tensor, axes)
        time = 1
    return batch, time, "you said so" if said else "axes' names" if named_batch is not None else "the usual order"


def _has_time(tensor: Tensor, axes: Axes) -> bool:
    """Is the second of the axes (batch, ...) the time, where it has no name?"""
    if len(axes) == 2:
        return tensor.is_integer  # (batch, time) tokens; numbers are (batch, features), one step a call
    return len(axes) > 2 and axes[1] in (None, 1)


def _check_time(tensor: Tensor, axes: Axes) -> None:
    """Whole numbers in a row of fixed length may be so many tokens, or so many values of one step."""
    size = axes[1]
    if len(axes) == 2 and isinstance(size, int) and size > 1:
        raise AdoptionError(
            f"are the {size} whole numbers of {tensor.name!r} {_show(axes)} one step, or one a step? Say which: "
            f"--shape {tensor.name}=batch,{size} or --shape {tensor.name}=batch,time"
        )


def _check_contexts(plan: Plan, inputs: dict[str, Tensor], wishes: Wishes) -> None:
    names = [stream.name for stream in plan.inputs]
    for name in wishes.contexts:
        if name not in names:
            raise AdoptionError(f"--context {name}: it is no data input; data are {', '.join(names)}")
    for stream in plan.inputs:
        axes = inputs[stream.name].axes
        free = not plan.has_time and axes is not None and axes and not isinstance(axes[-1], int)
        if free and not stream.tensor.is_integer and stream.name not in wishes.contexts:
            raise AdoptionError(
                f"{stream.name!r} takes any number of values a call, so it may want the end of the last call's in "
                "front of each call's; without them such a model answers wrongly and reports no error. Say how many: "
                f"--context {stream.name}:64, or --context {stream.name}:0 where its maker feeds it without"
            )


def _first(axes: Axes, pattern: re.Pattern[str], besides: int | None = None) -> int | None:
    found = (n for n, axis in enumerate(axes) if n != besides and isinstance(axis, str) and pattern.fullmatch(axis))
    return next(found, None)


def _guess(axes: Axes) -> list[str]:
    return [str(axis) if isinstance(axis, int) else BATCH if place == 0 else "SIZE" for place, axis in enumerate(axes)]


def _show(axes: Axes) -> str:
    return "(" + ", ".join("?" if axis is None else str(axis) for axis in axes) + ")"


def _unshaped(tensor: Tensor, example: str) -> str:
    return f"the shape of {tensor.name!r} is not in the file; say it, as in --shape {tensor.name}={example}"


def _say(tensor: Tensor) -> str:
    return f"{tensor.dtype}{'' if tensor.axes is None else _show(tensor.axes)}"
