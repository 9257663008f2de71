from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import onnx_models
from tests.service.api.clients import BROKEN, LSTM, SUM, open_client
from tests.service.api.oip.calls import error_of, infer, post, tensor
from tests.service.api.oip.schema import INDEX, check

pytestmark = pytest.mark.anyio
INDEX_URL = "/v2/repository/index"
X = tensor("x", [[[1, 2]]])


def url(model: str, what: str) -> str:
    return f"/v2/repository/models/{model}/{what}"


async def states(client: httpx.AsyncClient, model: str) -> dict[str, str]:
    entries = check(INDEX, (await client.post(INDEX_URL)).json())
    return {entry["version"]: entry["state"] for entry in entries if entry["name"] == model}


@pytest.mark.parametrize(
    ("body", "broken"), [(b"", True), (b"{}", True), (b'{"ready": false}', True), (b'{"ready": true}', False)]
)
async def test_the_index_lists_what_is_ready_and_what_is_not(
    client: httpx.AsyncClient, body: bytes, broken: bool
) -> None:
    entries = check(INDEX, (await client.post(INDEX_URL, content=body)).json())
    by_name = {entry["name"]: entry for entry in entries}
    assert by_name[LSTM] == {"name": LSTM, "version": "1", "state": "READY", "reason": ""}
    assert (BROKEN in by_name) == broken
    if broken:
        assert by_name[BROKEN]["state"] == "UNAVAILABLE"
        assert "onnxruntime cannot load" in by_name[BROKEN]["reason"]


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"ready": 1}'])
async def test_a_bad_body_of_the_index_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    error_of(await client.post(INDEX_URL, content=body), 400)


@pytest.mark.parametrize("what", ["load", "unload"])
async def test_where_control_is_off_it_says_how_to_allow_it(client: httpx.AsyncClient, what: str) -> None:
    error_of(await client.post(url(LSTM, what)), 503, "CAROUSEL_MODEL_CONTROL")
    assert (await states(client, LSTM)) == {"1": "READY"}


@pytest.fixture
def own_repository(tmp_path: Path, repository: Path) -> Path:
    for name in (SUM, BROKEN):
        shutil.copytree(repository / name, tmp_path / name)
    return tmp_path


async def test_models_come_and_go(own_repository: Path) -> None:
    async with open_client(own_repository, model_control=True) as client:
        started = {"sequence_id": 1, "sequence_start": True}
        assert (await post(client, SUM, X, parameters=started)).status_code == 200
        answer = await client.post(url(SUM, "unload"), json={"parameters": {"unload_dependents": False}})
        assert (answer.status_code, answer.content) == (200, b"")
        error_of(await client.get(f"/v2/models/{SUM}/ready"), 400)
        assert (await states(client, SUM))["1"] in ("UNLOADING", "UNAVAILABLE")
        gone = error_of(await post(client, SUM, X, parameters={"sequence_id": 1}), 410, "sequence_start")
        assert gone["reason"] == "version_unloaded"
        answer = await client.post(url(SUM, "load"), json={})
        assert (answer.status_code, answer.content) == (200, b"")
        assert (await infer(client, SUM, X))["y"].tolist() == [[[1, 2]]]


async def test_a_new_version_serves_new_sequences_and_running_ones_keep_theirs(own_repository: Path) -> None:
    async with open_client(own_repository, model_control=True) as client:
        await post(client, SUM, X, parameters={"sequence_id": 1, "sequence_start": True})
        onnx_models.running_sum(own_repository, SUM, 2, features=2)
        assert (await client.post(url(SUM, "load"))).status_code == 200
        assert (await states(client, SUM)) == {"1": "READY", "2": "READY"}
        assert (await client.get(f"/v2/models/{SUM}")).json()["versions"] == ["1", "2"]
        old = (await post(client, SUM, X, parameters={"sequence_id": 1})).json()
        new = (await post(client, SUM, X, parameters={"sequence_id": 2, "sequence_start": True})).json()
        assert (old["model_version"], new["model_version"]) == ("1", "2")
        mixed = {"sequence_ids": [1, 2]}
        both = tensor("x", [[[1, 2]], [[1, 2]]])
        error_of(await post(client, SUM, both, parameters=mixed), 400, "share one")
        taken = await post(
            client, SUM, X, parameters={"sequence_id": 1, "sequence_start": True, "sequence_takeover": True}
        )
        assert taken.json()["model_version"] == "2"


@pytest.mark.parametrize(
    ("model", "what", "body", "status", "words"),
    [
        ("nobody", "load", {}, 404, "no model"),
        ("nobody", "unload", {}, 404, "no model"),
        (BROKEN, "load", {}, 400, "could be loaded"),
        (SUM, "load", {"parameters": {"config": "{}"}}, 400, "cannot be sent"),
        (SUM, "load", {"parameters": {"file:1/model.onnx": "AAAA"}}, 400, "cannot be sent"),
        (SUM, "load", [], 400, "object"),
    ],
)
async def test_what_cannot_be_loaded_is_refused_with_the_reason(
    own_repository: Path, model: str, what: str, body: Any, status: int, words: str
) -> None:
    async with open_client(own_repository, model_control=True) as client:
        error_of(await client.post(url(model, what), json=body), status, words)
