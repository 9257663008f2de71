"""An infer request: JSON, then the binary tensors that it names; and whether it fits a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.errors import InvalidInput
from service.model_spec import ModelSpec
from service.protocol.arrays import Array, State
from service.protocol.bounded import MOST_ITEMS
from service.protocol.codec import JSON, decode_body, is_absent
from service.protocol.oip.bodies import InferBody, InputParameters, InputTensor, OutputTensor, Parameters
from service.protocol.oip.inputs import input_shape, read_input, read_states
from service.protocol.oip.tensors import datatype_of

_NO_CLASSES = (b"", b"null", b"0", b"false")


@dataclass(slots=True)
class Envelope:
    """A request whose tensors are not read yet: what they must be depends on the model."""

    fields: InferBody
    parameters: Parameters
    body: bytes
    begin: int
    """Where the binary tensors begin."""
    is_raw: bool = False
    """The body is the model's input, and nothing else."""


@dataclass(slots=True)
class Asked:
    """An output that the caller wants."""

    name: str
    is_binary: bool


@dataclass(slots=True)
class Inference:
    """What a request asks of a model."""

    inputs: Array
    """`(B, T, F)` float32 or `(B, T)` int64; may be a view of the body."""
    states: list[State] | None
    """Those that the caller carries, one a row; None begins from zeros."""
    outputs: list[Asked]


def open_envelope(body: bytes, json_bytes: int | None, max_rows: int = MOST_ITEMS) -> Envelope:
    """Read the JSON, the first `json_bytes` of the body; None is all of it, 0 a request without any.

    Of lists in a large body one more than `max_rows` is read at most, if that is more than MOST_ITEMS.
    Raises MalformedRequest, InvalidInput.
    """
    if json_bytes == 0:
        return Envelope(InferBody([]), Parameters(binary_data_output=True), body, 0, is_raw=True)
    if json_bytes is None:
        json_bytes = len(body)
    if json_bytes > len(body):
        raise InvalidInput(
            f"Inference-Header-Content-Length: expected {json_bytes} bytes of JSON, the whole body has {len(body)}.",
            expected=json_bytes,
            received=len(body),
        )
    fields = decode_body(JSON, InferBody, body[:json_bytes], max(max_rows, MOST_ITEMS))
    return Envelope(fields, fields.parameters or Parameters(), body, json_bytes)


def fit_to_model(
    envelope: Envelope, spec: ModelSpec, check_limits: Callable[[int, int], None], *, with_states: bool
) -> Inference:
    """Read the tensors. `check_limits` is told rows and steps before any number is read.

    `with_states`: whoever names no outputs gets the final states too. Raises InvalidInput.
    """
    inputs = [_raw_input(envelope.body, spec)] if envelope.is_raw else envelope.fields.inputs
    tensors, places = _by_name(inputs, spec), _lay_out(inputs, envelope)
    x = tensors.pop(spec.input.name)
    rows, steps, *_ = input_shape(x, spec.input)
    check_limits(rows, steps)
    array = read_input(x, spec.input, envelope.body, places)
    states = read_states(tensors, spec, rows, envelope.body, places) if tensors else None
    return Inference(array, states, asked_outputs(envelope, spec, with_states=with_states))


def output_names(spec: ModelSpec) -> list[str]:
    """The model's output, then its states as they come out."""
    return [spec.output.name, *(state.output for state in spec.states)]


def asked_outputs(envelope: Envelope, spec: ModelSpec, *, with_states: bool) -> list[Asked]:
    """What comes back, in the order asked for. Raises InvalidInput."""
    usual, names = envelope.parameters.binary_data_output, output_names(spec)
    outputs = envelope.fields.outputs
    if not outputs:
        return [Asked(name, usual) for name in (names if with_states else names[:1])]
    asked = [output.name for output in outputs]
    if len(set(asked)) < len(asked) or not set(asked) <= set(names):
        received = [name[:80] for name in asked[:20]]
        raise InvalidInput(
            f"outputs: expected some of {', '.join(names)}, each once; got {', '.join(received)}.",
            expected=names,
            received=received,
        )
    return [Asked(output.name, _is_binary(output, usual)) for output in outputs]


def _raw_input(body: bytes, spec: ModelSpec) -> InputTensor:
    steps, rest = divmod(len(body), spec.input.step_bytes)
    if rest or not steps:
        raise InvalidInput(
            f"The raw body has {len(body)} bytes; expected {spec.input.step_bytes} bytes a step, for one step or more.",
            expected=spec.input.step_bytes,
            received=len(body),
        )
    shape, datatype = [1, steps, *spec.input.step_shape], datatype_of(spec.input.dtype)
    return InputTensor(spec.input.name, shape, datatype, parameters=InputParameters(len(body)))


def _by_name(inputs: list[InputTensor], spec: ModelSpec) -> dict[str, InputTensor]:
    """The tensors, once they are the model's: no states or all of them, or at least those that it requires."""
    tensors = {tensor.name: tensor for tensor in inputs}
    states = {state.input for state in spec.states}
    needed = {state.input for state in spec.states if state.required} or states
    given = tensors.keys() - {spec.input.name}
    if len(given) + 1 == len(inputs) and spec.input.name in tensors and (not given or needed <= given <= states):
        return tensors
    expected, received = [state.input for state in spec.states], [tensor.name[:80] for tensor in inputs[:20]]
    raise InvalidInput(
        f"inputs: expected {spec.input.name!r} once, alone or with all of the states {', '.join(expected)}; "
        f"got {', '.join(received) or 'nothing'}.",
        expected=[spec.input.name, *expected],
        received=received,
    )


def _lay_out(inputs: list[InputTensor], envelope: Envelope) -> dict[str, slice]:
    """Where in the body each binary tensor stands, by its name."""
    at, end, places = envelope.begin, len(envelope.body), {}
    for tensor in inputs:
        parameters = tensor.parameters
        if parameters is None or parameters.binary_data_size is None:
            continue
        size = parameters.binary_data_size
        if at + size > end:
            raise InvalidInput(
                f"{tensor.name}: binary_data_size says {size} bytes, {end - at} are left of the body. Is "
                "Inference-Header-Content-Length the length of the JSON?",
                expected=size,
                received=end - at,
            )
        places[tensor.name] = slice(at, at + size)
        at += size
    if at < end:
        raise InvalidInput(
            f"Expected {at - envelope.begin} bytes of binary tensors after the JSON, got {end - envelope.begin}: "
            f"{end - at} are left over.",
            expected=at - envelope.begin,
            received=end - envelope.begin,
        )
    return places


def _is_binary(output: OutputTensor, usual: bool) -> bool:
    parameters = output.parameters
    if parameters is None:
        return usual
    if not is_absent(JSON, parameters.shared_memory_region) or bytes(parameters.classification) not in _NO_CLASSES:
        raise InvalidInput(f"outputs: {output.name}: shared memory and classification are not part of this server.")
    return usual if parameters.binary_data is None else parameters.binary_data
