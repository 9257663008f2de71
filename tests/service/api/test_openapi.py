"""The OpenAPI document is true: its examples work, its models and the decoder agree, and no call breaks the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from schemathesis import GenerationMode

from service.api import schemas
from service.errors import InvalidInput, MalformedRequest
from service.protocol import bodies
from service.protocol.codec import JSON, decode_body
from tests.service.api.processes import serve

PAIRS: list[tuple[type[BaseModel], type[msgspec.Struct]]] = [
    (schemas.PredictRequest, bodies.PredictBody),
    (schemas.StepsRequest, bodies.StepsBody),
    (schemas.CreateRequest, bodies.CreateBody),
    (schemas.StateRequest, bodies.StateBody),
    (schemas.ForkRequest, bodies.ForkBody),
]

# inputs and states are read by the model's own shape, so here they are always some list and some object
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "inputs": st.just([[0.5]]),
    "initial_state": st.just({"h": [[0.0]]}) | st.none(),
    "state": st.just({"h": [[0.0]]}),
}
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**54),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["all", "last", "none", "pump-7", "a b", "", "x" * 129, "a\n", "5", "é"]),
    st.just([]),
    st.just({}),
)


def documents(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Bodies near the good ones: fields left out, of other types, out of range, or unknown."""
    fields = {name: VALUES.get(name, ANYTHING) for name in model.model_fields if name != "sequences"}
    if "sequences" in model.model_fields:
        fields["sequences"] = st.lists(documents(schemas.SequenceInput), max_size=2) | ANYTHING
    return st.fixed_dictionaries({}, optional={**fields, "beams": st.just(1)}) | ANYTHING


@pytest.mark.parametrize(("model", "struct"), PAIRS)
def test_the_documented_models_and_the_decoder_give_the_same_verdict(
    model: type[BaseModel], struct: type[msgspec.Struct]
) -> None:
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(documents(model))
    def agree(document: Any) -> None:
        body = msgspec.json.encode(document)
        try:
            decode_body(JSON, struct, body)
            decoded = True
        except (InvalidInput, MalformedRequest):
            decoded = False
        try:
            model.model_validate_json(body)
            validated = True
        except ValidationError:
            validated = False
        assert decoded == validated, body

    agree()


@pytest.mark.anyio
async def test_every_example_works_as_it_stands(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    tried = 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                for model, example in content.get("examples", {}).items():
                    url = path.format(model=model, version=1, sequence_id=f"example-{tried}")
                    if path.endswith("/fork"):
                        await client.post(url.removesuffix("/fork") + "/steps", json=_steps_example(document, model))
                    answer = await client.request(method.upper(), url, json=example["value"])
                    assert answer.is_success, (method, url, answer.text)
                    tried += 1
    assert tried >= 10


def error_type(path: str) -> str:
    return "application/json" if path.startswith("/v2") else "application/problem+json"


def _steps_example(document: dict[str, Any], model: str) -> Any:
    path = "/v1/models/{model}/sequences/{sequence_id}/steps"
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return content["examples"][model]["value"]


@pytest.mark.anyio
async def test_every_operation_documents_its_errors_as_problems(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            assert operation.get("description")
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert list(response["content"]) == [error_type(path)], operation["operationId"]


def test_no_generated_call_breaks_the_server(repository: Path) -> None:
    with serve(repository) as served, httpx.Client(base_url=served.address) as client:
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(st.one_of(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))
            def call(case: Any) -> None:
                parts = case.as_transport_kwargs(base_url=served.address)
                answer = requests.request(**parts)
                # 503: a generated name may hit the model that is broken on purpose
                assert answer.status_code < 500 or answer.status_code == 503, (case.as_curl_command(), answer.text)
                if answer.status_code >= 400 and parts["method"] != "HEAD":
                    assert answer.headers["content-type"] == error_type(case.path), answer.text

            call()
