from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.service.api.clients import SUM, open_client, problem_of

pytestmark = pytest.mark.anyio
ALICE, ALSO_ALICE, BOB = ({"x-api-key": key} for key in ("alices-key", "alices-key-2", "bobs-own-key"))
ALL = f"/v1/models/{SUM}/sequences"


@pytest.fixture(scope="module")
async def guarded(anyio_backend: str, repository: Path) -> AsyncIterator[httpx.AsyncClient]:
    keys = ("alice:alices-key", "alice:alices-key-2", "bob:bobs-own-key")
    async with open_client(repository, api_keys=keys) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/models", ALL, "/metrics", "/v1/nothing/here"])
@pytest.mark.parametrize(
    "headers", [{}, {"x-api-key": "wrong-key"}, {"authorization": "Basic alices-key"}, {"x-api-key": "ällices"}]
)
async def test_without_a_key_there_is_nothing(guarded: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = await guarded.get(path, headers=sent)
    problem_of(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "headers", [ALICE, BOB, {"authorization": "Bearer alices-key"}, {"authorization": "bearer  alices-key"}]
)
async def test_a_key_opens_the_door(guarded: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await guarded.get("/v1/models", headers=headers)).status_code == 200
    assert (await guarded.get("/metrics", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/health/live", "/health/ready"])
async def test_pages_and_probes_are_open(guarded: httpx.AsyncClient, path: str) -> None:
    assert (await guarded.get(path)).status_code == 200


async def test_many_sequences_of_a_tenant_do_not_hold_up_anothers(repository: Path) -> None:
    ended: list[str] = []

    async def predict(headers: dict[str, str], num_sequences: int) -> None:
        body = {"sequences": [{"inputs": [[1, 2]]}] * num_sequences, "outputs": "none", "return_state": False}
        answer = await client.post(f"/v1/models/{SUM}/predict", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        ended.append(headers["x-api-key"])

    async def one_after_another() -> None:
        for _ in range(5):
            await predict(BOB, 1)

    async with open_client(repository, max_rows=1, api_keys=("alice:alices-key", "bob:bobs-own-key")) as client:
        await asyncio.gather(predict(ALICE, 500), one_after_another())
    assert ended == ["bobs-own-key"] * 5 + ["alices-key"]


async def test_another_tenants_sequence_is_one_that_never_was(guarded: httpx.AsyncClient) -> None:
    await guarded.post(ALL, json={"sequence_id": "mine"}, headers=ALICE)
    assert (await guarded.get(f"{ALL}/mine", headers=ALSO_ALICE)).status_code == 200
    calls = [
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/state", None),
        ("POST", "/fork", {}),
        ("POST", "/steps", {"inputs": [[1, 2]]}),
    ]
    for method, rest, body in calls:
        foreign = await guarded.request(method, f"{ALL}/mine{rest}", json=body, headers=BOB)
        absent = await guarded.request(method, f"{ALL}/none{rest}", json=body, headers=BOB)
        assert foreign.status_code == 404
        assert foreign.content.replace(b"/mine", b"/none") == absent.content
    assert (await guarded.get(ALL, headers=BOB)).json()["sequences"] == []


async def test_put_state_writes_to_ones_own_namespace(guarded: httpx.AsyncClient) -> None:
    await guarded.post(ALL, json={"sequence_id": "both"}, headers=ALICE)
    body = {"state": {"h": [[7, 8]]}, "step": 3}
    assert (await guarded.put(f"{ALL}/both/state", json=body, headers=BOB)).status_code == 200
    assert (await guarded.get(f"{ALL}/both", headers=ALICE)).json()["step"] == 0
    assert (await guarded.get(f"{ALL}/both", headers=BOB)).json()["step"] == 3
