"""POST /v2/models/{model}/infer: one request, whatever carries the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.api.call import Call, Reply, whole_number
from service.api.oip.models import model_of
from service.api.predict import check_batch, check_steps
from service.engine.request import Result, State
from service.model_spec import ModelSpec
from service.prediction import Row, predict
from service.protocol.bodies import MAX_STEP
from service.protocol.oip.answers import Rows, encode_answer
from service.protocol.oip.requests import Envelope, Inference, fit_to_model, open_envelope
from service.registry import LoadedModel

JSON_LENGTH = b"inference-header-content-length"
BINARY_TYPE = "application/octet-stream"


async def infer(call: Call) -> Reply:
    """Run rows of steps; inputs and outputs are JSON or, after the JSON, binary tensors, in any mixture.

    Without a sequence the rows begin from the states among the inputs, or from zeros, and the final states come back.
    """
    envelope = await call.read(open_envelope, call.body, _json_bytes(call))
    model = model_of(call)
    inference = await call.read(fit, call, envelope, model.spec)
    states: Sequence[State | None] = inference.states or [None] * len(inference.inputs)
    rows = [Row(inputs, state) for inputs, state in zip(inference.inputs, states, strict=True)]
    asked = {output.name for output in inference.outputs}
    results = await predict(
        model.engine,
        rows,
        outputs="all" if model.spec.output.name in asked else "none",
        return_state=bool(asked - {model.spec.output.name}),
        deadline=deadline_of(call, envelope),
        tenant=call.tenant,
    )
    return answer(envelope, model, inference, results)


def fit(call: Call, envelope: Envelope, spec: ModelSpec, *, with_states: bool = True) -> Inference:
    """The tensors as the model takes them, within the operator's limits. Raises InvalidInput, TooLarge."""
    settings = call.service.settings

    def check_limits(rows: int, steps: int) -> None:
        check_batch(settings, rows)
        check_steps(settings, rows * steps)

    return fit_to_model(envelope, spec, check_limits, with_states=with_states)


def deadline_of(call: Call, envelope: Envelope) -> float | None:
    """On the engine's clock: the parameter `timeout`, or X-Request-Timeout-Ms, whichever comes first."""
    deadline = call.deadline
    if not envelope.parameters.timeout:
        return deadline
    arrived: float = call.scope["arrived_at"]
    until = arrived + envelope.parameters.timeout / 1e6
    return until if deadline is None else min(until, deadline)


def answer(
    envelope: Envelope,
    model: LoadedModel,
    inference: Inference,
    results: list[Result],
    parameters: dict[str, Any] | None = None,
) -> Reply:
    document: dict[str, Any] = {"model_name": model.name, "model_version": str(model.version)}
    if envelope.fields.id is not None:
        document["id"] = envelope.fields.id
    if parameters:
        document["parameters"] = parameters
    outputs = [(asked.name, _rows(asked.name, model.spec, results), asked.is_binary) for asked in inference.outputs]
    body, json_bytes = encode_answer(document, outputs)
    if json_bytes is None:
        return Reply(body)
    return Reply(body, content_type=BINARY_TYPE, headers=((JSON_LENGTH, str(json_bytes).encode()),))


def _rows(name: str, spec: ModelSpec, results: list[Result]) -> Rows:
    if name == spec.output.name:
        return [result.outputs for result in results]
    index = next(n for n, state in enumerate(spec.states) if state.output == name)
    return [result.state[index] for result in results if result.state is not None]


def _json_bytes(call: Call) -> int | None:
    text = call.header(JSON_LENGTH)
    return None if text is None else whole_number("Inference-Header-Content-Length", text, 0, MAX_STEP)
