from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.api.clients import BIDIR, BROKEN, LSTM, SUM, TOKENS, open_client
from tests.service.api.oip.calls import error_of
from tests.service.api.oip.schema import CONFIG, MODEL, SERVER, check

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_server_metadata(client: httpx.AsyncClient, path: str) -> None:
    document = check(SERVER, (await client.get(path)).json())
    assert document["name"] == "carousel"
    assert {"sequence", "sequence(string_id)", "binary_tensor_data"} <= set(document["extensions"])


async def test_only_what_is_there_is_advertised(client: httpx.AsyncClient) -> None:
    """Each extension by an address that it stands for."""
    addresses = {"model_configuration": f"/v2/models/{SUM}/config", "statistics": "/v2/models/stats"}
    extensions = (await client.get("/v2")).json()["extensions"]
    for extension, address in addresses.items():
        assert (extension in extensions) == ((await client.get(address)).status_code == 200), extension
    assert not [name for name in extensions if "shared_memory" in name or name in ("trace", "logging")]


@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_model_metadata_has_the_batch_first_and_the_states_last(client: httpx.AsyncClient, version: str) -> None:
    document = check(MODEL, (await client.get(f"/v2/models/{LSTM}{version}")).json())
    assert (document["name"], document["versions"], document["platform"]) == (LSTM, ["1"], "onnxruntime_onnx")
    states = [{"datatype": "FP32", "shape": [-1, 2, 8]}] * 2
    assert document["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, -1, 3]},
        *({"name": name, **state} for name, state in zip("hc", states, strict=True)),
    ]
    assert document["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [-1, -1, 2]},
        *({"name": f"{name}_next", **state} for name, state in zip("hc", states, strict=True)),
    ]
    tokens = (await client.get(f"/v2/models/{TOKENS}{version}")).json()
    assert tokens["inputs"][0] == {"name": "x", "datatype": "INT64", "shape": [-1, -1]}


@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_configuration_lists_the_states(client: httpx.AsyncClient, version: str) -> None:
    document = check(CONFIG, (await client.get(f"/v2/models/{LSTM}{version}/config")).json())
    assert document["max_batch_size"] == 8
    assert document["input"][0] == {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 3]}
    assert document["input"][1] == {"name": "h", "data_type": "TYPE_FP32", "dims": [2, 8], "optional": True}
    states = document["sequence_batching"]["state"]
    assert [(s["input_name"], s["output_name"], s["dims"]) for s in states] == [
        ("h", "h_next", [2, 8]),
        ("c", "c_next", [2, 8]),
    ]
    whole = check(CONFIG, (await client.get(f"/v2/models/{BIDIR}/config")).json())
    assert "sequence_batching" not in whole, "it cannot be stepped"


@pytest.mark.parametrize("rest", ["", "/config"])
@pytest.mark.parametrize("model", ["nobody", f"{LSTM}/versions/7", f"{LSTM}/versions/x", f"{LSTM}/versions/²"])
async def test_a_model_or_version_that_is_not_there_is_a_404(client: httpx.AsyncClient, model: str, rest: str) -> None:
    error_of(await client.get(f"/v2/models/{model}{rest}"), 404)


async def test_a_model_that_could_not_be_loaded_is_not_ready(client: httpx.AsyncClient) -> None:
    error_of(await client.get(f"/v2/models/{BROKEN}"), 503, "could not be loaded")
    error_of(await client.get(f"/v2/models/{BROKEN}/ready"), 400, "could not be loaded")
    error_of(await client.get("/v2/models/nobody/ready"), 400, "no model")


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", f"/v2/models/{SUM}/ready"])
async def test_what_is_ready_answers_with_an_empty_body(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        (f"/v2/models/{SUM}/ready", {"name": SUM, "ready": True}),
    ],
)
async def test_callers_who_say_that_they_read_json_get_the_documents_of_kserve(
    client: httpx.AsyncClient, path: str, document: dict[str, Any]
) -> None:
    answer = await client.get(path, headers={"accept": "application/json"})
    assert (answer.status_code, answer.json()) == (200, document)


async def test_probes_are_open_and_the_rest_asks_for_a_key(repository: Path) -> None:
    async with open_client(repository, api_keys=("alice:alices-key",)) as client:
        assert (await client.get("/v2/health/live")).status_code == 200
        assert (await client.get("/v2/health/ready")).status_code == 200
        for path in ("/v2", f"/v2/models/{SUM}", f"/v2/models/{SUM}/ready"):
            error_of(await client.get(path), 401, "key")
            assert (await client.get(path, headers={"x-api-key": "alices-key"})).status_code == 200


async def test_a_server_that_shuts_down_is_alive_and_not_ready(repository: Path) -> None:
    async with open_client(repository) as client:
        client._transport.app.state.service.draining = True  # type: ignore[attr-defined]
        assert (await client.get("/v2/health/live")).status_code == 200
        error_of(await client.get("/v2/health/ready"), 400, "shutting down")
        error_of(await client.post(f"/v2/models/{SUM}/infer", json={}), 503, "shutting down")
