"""POST /v1/models/{model}/predict: the caller carries the state."""

from __future__ import annotations

from typing import Any

from msgspec import Raw
from starlette.routing import BaseRoute

from service.api import schemas
from service.api.call import Call, Reply, Service
from service.api.routes import TIMEOUT, VERSION, DirectRoute
from service.api.start_state import read_start
from service.engine.request import Result
from service.errors import CarouselError, TooLarge
from service.model_spec import ModelSpec
from service.prediction import Row
from service.prediction import predict as run
from service.protocol.answers import contiguous, named_state
from service.protocol.arrays import Array, count_steps, read_inputs
from service.protocol.bodies import PredictBody
from service.protocol.codec import decode_body
from service.registry import LoadedModel
from service.settings import Settings


def routes(service: Service) -> list[BaseRoute]:
    return [
        DirectRoute(
            service,
            "POST",
            "/v1/models/{model}/predict",
            predict,
            body=schemas.PredictRequest,
            query={"version": VERSION, "x_request_timeout_ms": TIMEOUT},
            answer=schemas.PredictAnswer,
            errors=(400, 401, 404, 413, 415, 422, 500, 503, 504),
            msgpack=True,
            tags=["stateless"],
            summary="Run whole sequences",
        )
    ]


async def predict(call: Call) -> Reply:
    """Run one or many sequences of any lengths, each from its `initial_state`, its `state_token` or from zeros.

    Splitting a sequence over calls, each from the last one's `final_state` or `state_token`, gives the outputs of one
    call, bit for bit. A token is the final state, sealed: good for this model version and tenant until it expires. One
    bad sequence fails the call, and nothing runs.
    """
    model, deadline = call.model, call.deadline
    body, rows = await call.read(_read, call, model)
    results = await run(
        model.engine,
        rows,
        outputs=body.outputs,
        return_state=body.return_state,
        deadline=deadline,
        tenant=call.tenant,
    )
    sequences = [_sequence(call, model, row, result) for row, result in zip(rows, results, strict=True)]
    return call.answer({"model": model.name, "version": model.version, "sequences": sequences})


def read_bounded(call: Call, raw: Raw, spec: ModelSpec, place: str = "inputs", others: int = 0) -> Array:
    """Inputs of a call that has `others` steps besides. Raises TooLarge before the work of reading them is done."""
    settings = call.service.settings
    if len(raw) > 2 * (settings.max_steps - others):  # a step is a digit and a comma at least
        check_steps(settings, others + count_steps(call.codec, raw, spec))
    inputs = read_inputs(call.codec, raw, spec, place)
    check_steps(settings, others + len(inputs))
    return inputs


def check_steps(settings: Settings, steps: int) -> None:
    """Raises TooLarge when a call has more steps than the operator allows."""
    if steps > settings.max_steps:
        raise TooLarge(
            f"{steps} steps are more than the {settings.max_steps} that one call may have. Send them in several calls; "
            "the state carries over.",
            limit=settings.max_steps,
            limit_name="steps",
            received=steps,
        )


def check_batch(settings: Settings, sequences: int) -> None:
    """Raises TooLarge when a call has more sequences than the operator allows."""
    if sequences > settings.max_batch:
        raise TooLarge(
            f"{sequences} sequences are more than the {settings.max_batch} that one call may have.",
            limit=settings.max_batch,
            limit_name="sequences",
            received=sequences,
        )


def _read(call: Call, model: LoadedModel) -> tuple[PredictBody, list[Row]]:
    body = decode_body(call.codec, PredictBody, call.body, call.service.settings.max_batch)
    return body, _rows(call, body, model)


def _rows(call: Call, body: PredictBody, model: LoadedModel) -> list[Row]:
    settings, rows, steps = call.service.settings, [], 0
    check_batch(settings, len(body.sequences))
    for index, sequence in enumerate(body.sequences):
        place = f"sequences[{index}]"
        try:
            inputs = read_bounded(call, sequence.inputs, model.spec, f"{place}.inputs", steps)
            start = read_start(call, model, sequence.initial_state, sequence.state_token, within=f"{place}.")
        except CarouselError as error:
            error.fields["index"] = index
            raise
        steps += len(inputs)
        rows.append(Row(inputs, start.state, start.step) if start else Row(inputs))
    return rows


def _sequence(call: Call, model: LoadedModel, row: Row, result: Result) -> dict[str, Any]:
    answer: dict[str, Any] = {"outputs": contiguous(result.outputs), "steps": result.steps}
    if result.state is not None:
        answer["final_state"] = named_state(model.spec, result.state)
        answer["state_token"] = call.service.tokens.seal(call.tenant, model, row.step + result.steps, result.state)
    return answer
