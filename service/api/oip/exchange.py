"""What every infer request goes through, with a sequence or without: its limits, its deadline and its answer."""

from __future__ import annotations

from typing import Any

from service.api.call import Call, Reply
from service.api.predict import check_batch, check_steps
from service.engine.request import Outputs, Result
from service.errors import StepConflict
from service.model_spec import ModelSpec
from service.protocol.answers import timestamp
from service.protocol.oip.answers import Rows, encode_answer
from service.protocol.oip.requests import Envelope, Inference, fit_to_model
from service.registry import LoadedModel
from service.sequence import Sequence

JSON_LENGTH = b"inference-header-content-length"
BINARY_TYPE = "application/octet-stream"


def fit(call: Call, envelope: Envelope, spec: ModelSpec, with_states: bool) -> Inference:
    """The tensors as the model takes them, within the operator's limits. Raises InvalidInput, TooLarge.

    `with_states`: whoever names no outputs gets the final states too.
    """
    settings = call.service.settings

    def check_limits(rows: int, steps: int) -> None:
        check_batch(settings, rows)
        check_steps(settings, rows * steps)

    return fit_to_model(envelope, spec, check_limits, with_states=with_states)


def engine_outputs(spec: ModelSpec, inference: Inference) -> tuple[Outputs, bool]:
    """What the engine is to give: outputs of all steps or of none, and the final state or not."""
    asked = {output.name for output in inference.outputs}
    return "all" if spec.output.name in asked else "none", bool(asked - {spec.output.name})


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
    return Reply(body) if json_bytes is None else binary_reply(body, json_bytes)


def binary_reply(body: bytes, json_bytes: int) -> Reply:
    """JSON and the binary tensors after it."""
    return Reply(body, content_type=BINARY_TYPE, headers=((JSON_LENGTH, b"%d" % json_bytes),))


def told_of_sequence(envelope: Envelope, sequence: Sequence, result: Result) -> dict[str, Any]:
    """Where the sequence stands now, and until when it lives."""
    return {
        "sequence_id": envelope.parameters.sequence_id,
        "sequence_step": result.position,
        "sequence_replayed": result.replayed,
        "sequence_expires_at": timestamp(sequence.expires_at),
    }


def other_outputs(sequence_id: str, step: int | None, result: Result) -> StepConflict:
    """A repeat gets the answer as it was asked for the first time, and this one lacks what is asked for now."""
    return StepConflict(
        f"Sequence {sequence_id!r} answered this call before, with other outputs. Ask for the same, or go on from step "
        f"{result.position}.",
        expected_step=result.position,
        expected=result.position,
        received=step,
    )


def _rows(name: str, spec: ModelSpec, results: list[Result]) -> Rows:
    if name == spec.output.name:
        return [result.outputs for result in results]
    index = next(n for n, state in enumerate(spec.states) if state.output == name)
    return [result.state[index] for result in results if result.state is not None]
