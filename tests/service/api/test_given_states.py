"""A model that begins with something given, an embedding say, is never begun from zeros in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.service import onnx_models
from tests.service.api.clients import open_client, problem_of

pytestmark = pytest.mark.anyio
GUIDED = "/v1/models/guided"
NEEDED = "A sequence of this model begins with g: send it in `initial_state`, or under /v2 as an input."


@pytest.fixture(scope="module")
async def guided(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    root = tmp_path_factory.mktemp("guided")
    onnx_models.guided(root)
    async with open_client(root) as opened:
        yield opened


async def test_what_is_given_stays_and_the_other_states_may_be_left_out(guided: httpx.AsyncClient) -> None:
    begun = await guided.post(f"{GUIDED}/sequences", json={"sequence_id": "s", "initial_state": {"g": [[10]]}})
    assert begun.status_code == 201, begun.text
    steps = [
        await guided.post(f"{GUIDED}/sequences/s/steps", json={"inputs": [[1]], "return_state": True}) for _ in range(2)
    ]
    assert [answer.json()["outputs"] for answer in steps] == [[[11]], [[22]]]
    assert steps[1].json()["final_state"] == {"h": [[22]], "g": [[10]]}
    sequences = [{"inputs": [[1], [1]], "initial_state": {"g": [[10]], "h": [[100]]}}]
    answer = await guided.post(f"{GUIDED}/predict", json={"sequences": sequences})
    assert answer.json()["sequences"][0]["outputs"] == [[111], [122]]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/sequences", {}),
        ("/sequences/new/steps", {"inputs": [[1]], "start": True}),
        ("/predict", {"sequences": [{"inputs": [[1]]}]}),
    ],
)
async def test_without_it_nothing_begins(guided: httpx.AsyncClient, path: str, body: dict[str, object]) -> None:
    problem = problem_of(await guided.post(GUIDED + path, json=body), 422, "invalid_state")
    assert problem["detail"].endswith(NEEDED)
    assert problem["expected"] == ["g"]
    assert (await guided.get(f"{GUIDED}/sequences/new/state")).status_code == 404


async def test_a_state_without_what_is_needed_does_not_fit(guided: httpx.AsyncClient) -> None:
    problem = problem_of(
        await guided.post(f"{GUIDED}/sequences", json={"initial_state": {"h": [[1]]}}), 422, "invalid_state"
    )
    assert problem["received"] == ["h"]


async def test_it_is_told_at_every_door(guided: httpx.AsyncClient) -> None:
    states = (await guided.get(GUIDED)).json()["states"]
    assert [(state["name"], state.get("required", False)) for state in states] == [("h", False), ("g", True)]
    batching = (await guided.get("/v2/models/guided/config")).json()["sequence_batching"]
    assert [bool(state["initial_state"]) for state in batching["state"]] == [True, False]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1, 1], "data": [1]}
    refused = await guided.post("/v2/models/guided/infer", json={"inputs": [tensor]})
    assert refused.status_code in (400, 422)
    assert NEEDED in refused.json()["error"]
