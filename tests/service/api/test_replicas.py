"""Two servers on one Redis: what one of them did to a sequence, the other tells, though it has a row of it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.service import onnx_models
from tests.service.api.clients import open_client, problem_of

pytestmark = pytest.mark.anyio

ONE = "/v1/models/running-sum/sequences/s"
STATE = {"state": {"h": [[7]]}, "step": 7}


@pytest.fixture
async def replicas(tmp_path: Path, redis_url: str) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Sequence `s` was stepped by both."""
    onnx_models.running_sum(tmp_path)
    polled = {"state_store": redis_url, "model_poll_seconds": 0.01}
    async with open_client(tmp_path, **polled) as one, open_client(tmp_path, **polled) as other:
        for client in (one, other):
            stepped = await client.post(f"{ONE}/steps", json={"inputs": [[1]], "start": True})
            assert stepped.status_code == 200
        yield one, other


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/state"), ("POST", "/fork")])
async def test_what_was_deleted_at_one_is_gone_at_the_other(
    replicas: tuple[httpx.AsyncClient, httpx.AsyncClient], method: str, path: str
) -> None:
    one, other = replicas
    assert (await one.delete(ONE)).status_code == 204
    assert problem_of(await other.request(method, ONE + path), 410, "sequence_gone")["reason"] == "deleted"


@pytest.mark.parametrize("steps", [3, 300])
async def test_what_one_generated_the_other_tells_again(tmp_path: Path, redis_url: str, steps: int) -> None:
    onnx_models.token_counts(tmp_path)
    generate = "/v1/models/token-counts/sequences/s/generate"
    body = {"inputs": "ce", "steps": steps, "step": 0, "seed": 5}
    async with (
        open_client(tmp_path, state_store=redis_url) as one,
        open_client(tmp_path, state_store=redis_url) as other,
    ):
        await one.post("/v1/models/token-counts/sequences", json={"sequence_id": "s"})
        assert (await other.get("/v1/models/token-counts/sequences/s/state")).status_code == 200
        first, again = [(await client.post(generate, json=body)).json() for client in (one, other)]
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert (again["text"], again["step"], again["final_state"]) == (first["text"], 2 + steps, first["final_state"])


async def test_what_was_deleted_at_one_is_begun_anew_by_its_first_steps_at_the_other(
    replicas: tuple[httpx.AsyncClient, httpx.AsyncClient],
) -> None:
    one, other = replicas
    await one.delete(ONE)
    begun = await other.post(f"{ONE}/steps", json={"inputs": [[3]], "step": 0, "start": True})
    assert (begun.json()["outputs"], begun.json()["step"]) == ([[3]], 1)
    assert (await one.post(f"{ONE}/steps", json={"inputs": [[1]]})).json()["step"] == 2
    await other.delete(ONE)
    tensor = {"name": "x", "shape": [1, 1, 1], "datatype": "FP32", "data": [4]}
    body = {"inputs": [tensor], "parameters": {"sequence_id": "s", "sequence_start": True}}
    begun = await one.post("/v2/models/running-sum/infer", json=body)
    assert begun.json()["outputs"][0]["data"] == [4]


async def test_a_state_is_put_in_place_of_what_was_deleted_at_the_other(
    replicas: tuple[httpx.AsyncClient, httpx.AsyncClient],
) -> None:
    one, other = replicas
    await one.delete(ONE)
    assert (await other.put(f"{ONE}/state", json=STATE)).json()["step"] == 7
    assert (await one.get(f"{ONE}/state")).json()["state"] == {"h": [[7]]}


@pytest.mark.parametrize(
    ("method", "path", "body"), [("GET", "/state", None), ("POST", "/fork", None), ("PUT", "/state", STATE)]
)
async def test_what_began_anew_with_another_version_is_seen_at_the_other(
    replicas: tuple[httpx.AsyncClient, httpx.AsyncClient], tmp_path: Path, method: str, path: str, body: object
) -> None:
    one, other = replicas
    shutil.move(onnx_models.running_sum(tmp_path / ".unfinished", version=2).parent, tmp_path / "running-sum" / "2")
    for client in replicas:
        while (await client.get("/v1/models")).json()["models"][0]["version"] != 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await one.delete(ONE)
    await one.post("/v1/models/running-sum/sequences", json={"sequence_id": "s"})
    answer = await other.request(method, ONE + path, json=body)
    assert answer.is_success, answer.text
    assert (await other.get(ONE)).json()["version"] == 2
