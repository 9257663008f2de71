"""POST /v2/models/{model}/infer: one address, whoever carries the state."""

from __future__ import annotations

from collections.abc import Sequence

from service.api.call import Call, Reply, whole_number
from service.api.oip.compression import compressed
from service.api.oip.exchange import JSON_LENGTH, answer, deadline_of, engine_outputs, fit
from service.api.oip.models import model_of
from service.api.oip.sequences import infer_in_sequences, is_in_sequences
from service.engine.request import State
from service.prediction import Row, predict
from service.protocol.bodies import MAX_STEP
from service.protocol.oip.requests import Envelope, open_envelope


async def infer(call: Call) -> Reply:
    """Run rows of steps; inputs and outputs are JSON or, after the JSON, binary tensors, in any mixture.

    Without a `sequence_id` the rows begin from the states among the inputs, or from zeros, and the final states come
    back. With one, or `sequence_ids`, the server carries the state: the first request sets `sequence_start`, the last
    `sequence_end`, and `sequence_step` makes repeats harmless, as `step` does under /v1. `Accept-Encoding: gzip`, or
    `deflate`, by itself compresses the answer.
    """
    envelope = await call.read(open_envelope, call.body, _json_bytes(call), call.service.settings.max_batch)
    run = infer_in_sequences if is_in_sequences(envelope.parameters) else _infer_alone
    return await compressed(call, await run(call, envelope))


async def _infer_alone(call: Call, envelope: Envelope) -> Reply:
    """The caller carries the state."""
    model = model_of(call)
    inference = await call.read(fit, call, envelope, model.spec, True)
    states: Sequence[State | None] = inference.states or [None] * len(inference.inputs)
    rows = [Row(inputs, state) for inputs, state in zip(inference.inputs, states, strict=True)]
    outputs, return_state = engine_outputs(model.spec, inference)
    results = await predict(
        model.engine,
        rows,
        outputs=outputs,
        return_state=return_state,
        deadline=deadline_of(call, envelope),
        tenant=call.tenant,
        place="Row {}",
    )
    return answer(envelope, model, inference, results)


def _json_bytes(call: Call) -> int | None:
    text = call.header(JSON_LENGTH)
    return None if text is None else whole_number("Inference-Header-Content-Length", text, 0, MAX_STEP)
