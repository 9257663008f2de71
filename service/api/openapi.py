"""The OpenAPI document, with examples made from the models that are really loaded, so that they work as they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api import schemas
from service.api.call import Service
from service.api.oip.schemas import OipError
from service.protocol.oip.tensors import datatype_of
from service.registry import LoadedModel

DESCRIPTION = """\
Stateful serving of LSTM and GRU models.

Without state on the server: `predict`. With it: begin a sequence, then send its steps as they come. Either way,
`generate` lets the model feed itself. Shapes are per sequence, without a batch axis: `inputs` is `[T][F]` numbers or
`[T]` token ids, `outputs` is `[T][O]`, a state is `{"h": [L][H], "c": [L][H]}` for an LSTM. `predict`, `steps` and
`generate` also take `application/msgpack`, and answer in the form they were asked in; bodies may be sent with
`Content-Encoding: gzip` or `deflate`.

`/v1/models/{model}/stream` is a WebSocket on which many sequences are stepped over one connection: text frames are the
body of `steps` with `sequence_id` and an `id` that is echoed; the subprotocol `carousel.v1.binary` takes many records
a frame.

Where the server has API keys, send one as `Authorization: Bearer <key>` or `X-API-Key: <key>`: everything under `/v1`
and `/v2` and `/metrics` need it; probes, `/docs` and `/` do not. Every error is an RFC 9457 problem document.

`/v2` is the same server spoken to in the Open Inference Protocol, with binary tensors and sequences, for clients such
as tritonclient. There shapes carry the batch axis first, `[B, T, F]`, and an error is `{"error": "..."}`.
"""

SEQUENCE_ID = "pump-7"
MAX_EXAMPLES = 8

Example = Callable[[LoadedModel], dict[str, Any]]


def document(app: FastAPI, service: Service) -> dict[str, Any]:
    """Of the models that are loaded just now."""
    openapi = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    components = openapi["components"]
    for model in (schemas.Problem, OipError):
        components["schemas"][model.__name__] = model.model_json_schema()
    loaded = sorted(service.registry.loaded(), key=lambda model: not model.spec.streaming)[:MAX_EXAMPLES]
    for path, operations in openapi["paths"].items():
        # a sequence's examples are of models that can be stepped
        fitting = [model for model in loaded if model.spec.streaming or "sequence" not in path]
        if path.endswith("/generate"):
            fitting = [model for model in fitting if model.spec.feeds_itself]
        for operation in operations.values():
            _add_examples(operation, fitting)
    if service.tenants:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        openapi["security"] = [{"bearer": []}, {"header": []}]
    return openapi


def example_inputs(model: LoadedModel, steps: int = 2) -> list[Any]:
    """Inputs that fit the model: small numbers, or the first tokens."""
    spec = model.spec.input
    if spec.dtype == "int64":
        return [step % len(spec.vocabulary or "0") for step in range(steps)]
    return [_filled(spec.step_shape, 0.5) for _ in range(steps)]


def _filled(shape: tuple[int, ...], value: float) -> Any:
    return [_filled(shape[1:], value) for _ in range(shape[0])] if shape else value


def _zero_state(model: LoadedModel) -> dict[str, Any]:
    return {state.name: _filled(state.row_shape, 0.0) for state in model.spec.states}


def _infer_input(model: LoadedModel) -> dict[str, Any]:
    tensor, steps = model.spec.input, 2
    shape = [1, steps, *tensor.step_shape]
    data = [example_inputs(model, steps)]
    return {"name": tensor.name, "shape": shape, "datatype": datatype_of(tensor.dtype), "data": data}


_EXAMPLES: dict[str, Example] = {
    "PredictRequest": lambda model: {"sequences": [{"inputs": example_inputs(model)}], "outputs": "last"},
    "StepsRequest": lambda model: {"inputs": example_inputs(model), "outputs": "last", "start": True},
    "FreeGenerateRequest": lambda model: {"inputs": example_inputs(model), "steps": 3, "seed": 1},
    "SequenceGenerateRequest": lambda model: {"inputs": example_inputs(model), "steps": 3, "commit": False},
    "CreateRequest": lambda model: {"ttl_seconds": 3600},
    "StateRequest": lambda model: {"state": _zero_state(model), "step": 0},
    "ForkRequest": lambda model: {},
    "InferRequest": lambda model: {"inputs": [_infer_input(model)]},
    "IndexRequest": lambda model: {"ready": True},
}


def _add_examples(operation: dict[str, Any], models: list[LoadedModel]) -> None:
    for parameter in operation.get("parameters", []):
        if parameter["name"] == "model" and models:
            parameter["examples"] = {model.name: {"value": model.name} for model in models}
        elif parameter["name"] == "version" and parameter["in"] == "path":
            parameter["example"] = "1"
        elif parameter["name"] == "sequence_id":
            parameter["example"] = SEQUENCE_ID
    for content in operation.get("requestBody", {}).get("content", {}).values():
        if make := _EXAMPLES.get(content["schema"]["$ref"].rsplit("/", 1)[-1]):
            content["examples"] = {model.name: {"value": make(model)} for model in models}
