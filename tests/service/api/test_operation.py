"""Models, health, metrics, pages and what happens at addresses that are none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.api.clients import BIDIR, BROKEN, LSTM, SUM, TOKENS, open_client, problem_of

pytestmark = pytest.mark.anyio


async def test_the_list_has_every_model_and_why_one_failed(client: httpx.AsyncClient) -> None:
    models = {model["name"]: model for model in (await client.get("/v1/models")).json()["models"]}
    assert list(models) == sorted([SUM, TOKENS, LSTM, BIDIR, BROKEN])
    assert models[SUM] == {
        "name": SUM,
        "version": 1,
        "versions": [1],
        "task": "regression",
        "cell": "sum",
        "ready": True,
        "description": "",
    }
    assert not models[BROKEN]["ready"]
    assert models[BROKEN]["reason"]


async def test_the_card_says_what_to_send_and_what_comes_back(client: httpx.AsyncClient) -> None:
    card = (await client.get(f"/v1/models/{LSTM}")).json()
    assert (card["cell"], card["layers"], card["hidden_size"], card["streaming"]) == ("lstm", 2, 8, True)
    assert card["inputs"] == [
        {"name": "x", "dtype": "float32", "description": "", "kind": "value", "shape": ["time", 3]}
    ]
    assert [state["shape"] for state in card["states"]] == [[2, 8], [2, 8]]
    assert card["provider"] == "CPUExecutionProvider"
    assert len(card["fingerprint"]) == 64
    assert card["limits"]["max_batch"] == 8
    assert (await client.get(f"/v1/models/{TOKENS}")).json()["inputs"][0]["vocabulary"] == list("abcde")
    problem_of(await client.get("/v1/models/nobody"), 404, "model_not_found")


async def test_a_broken_model_is_not_ready_and_names_no_internals(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/v1/models/{BROKEN}")
    problem = problem_of(answer, 503, "model_not_ready")
    assert int(answer.headers["retry-after"]) >= 1
    assert "onnx" not in problem["detail"].lower()


async def test_ready_once_loaded_and_not_while_draining(repository: Path) -> None:
    app = create_app(Settings(model_repository=repository))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://carousel") as client:
        assert (await client.get("/health/live")).status_code == 200
        problem_of(await client.get("/health/ready"), 503, "model_not_ready")
        async with app.router.lifespan_context(app):
            assert (await client.get("/health/ready")).json() == {"status": "ready"}
            app.state.service.draining = True
            answer = await client.get("/health/ready")
            problem_of(answer, 503, "draining")
            assert "retry-after" in answer.headers
            problem_of(await client.get("/v1/models"), 503, "draining")
            assert (await client.get("/health/live")).status_code == 200


async def test_not_ready_when_no_model_could_be_loaded(tmp_path: Path) -> None:
    async with open_client(tmp_path) as client:
        assert "empty" in problem_of(await client.get("/health/ready"), 503, "model_not_ready")["detail"]
    (tmp_path / "bad" / "1").mkdir(parents=True)
    async with open_client(tmp_path) as client:
        assert problem_of(await client.get("/health/ready"), 503, "model_not_ready")["failed"] == ["bad"]


async def test_metrics_count_by_route_and_never_by_path(client: httpx.AsyncClient) -> None:
    await client.get(f"/v1/models/{SUM}/sequences/some-id")
    await client.get("/no/such/path")
    page = (await client.get("/metrics")).text
    one = 'route="/v1/models/{model}/sequences/{sequence_id}"'
    assert f'carousel_http_requests_total{{method="GET",{one},status="404"}}' in page
    assert 'carousel_errors_total{code="sequence_not_found"}' in page
    assert "carousel_run_seconds_bucket" in page
    assert "some-id" not in page
    assert "/no/such/path" not in page


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/models/", "/docs/", "/playground/x.js", "/docs/x.js", "//v1/models"]
)
async def test_unknown_addresses(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get("http://carousel" + path)
    problem_of(answer, 404, "route_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/models", "GET, HEAD"),
        ("PATCH", f"/v1/models/{SUM}/sequences/x", "DELETE, GET, HEAD"),
        ("OPTIONS", f"/v1/models/{SUM}/predict", "POST"),
        ("GET", f"/v1/models/{SUM}/predict", "POST"),
        ("HEAD", f"/v1/models/{SUM}/predict", "POST"),
        ("BREW", "/", "GET, HEAD"),
    ],
)
async def test_other_methods_are_told_which_there_are(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/v1/models", "/health/ready", "/", "/docs", "/metrics", "/nothing"])
async def test_head_is_get_without_the_body(client: httpx.AsyncClient, path: str) -> None:
    head, get = await client.head(path), await client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize(
    "path",
    ["/", "/playground/app.js", "/playground/style.css", "/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js"],
)
async def test_pages_are_self_contained(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    if not path.startswith("/docs/s"):
        assert "https://" not in answer.text
        assert "http://" not in answer.text.replace("http://www.w3.org/", "")


async def test_the_callers_deadline(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_client(repository) as client:
        # the call is said to have arrived an hour ago
        monkeypatch.setattr("service.api.edge.now", lambda: asyncio.get_running_loop().time() - 3600)
        body, headers = {"inputs": [[1, 2]], "start": True}, {"x-request-timeout-ms": "50"}
        answer = await client.post(f"/v1/models/{SUM}/sequences/late/steps", json=body, headers=headers)
        problem_of(answer, 504, "deadline_exceeded")
        problem_of(await client.get(f"/v1/models/{SUM}/sequences/late"), 404, "sequence_not_found")
        predict = {"sequences": [{"inputs": [[1, 2]]}]}
        answer = await client.post(f"/v1/models/{SUM}/predict", json=predict, headers=headers)
        problem_of(answer, 504, "deadline_exceeded")


async def test_an_unforeseen_error_is_told_without_internals(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    async with open_client(repository) as client:
        monkeypatch.setattr("service.registry.Registry.names", fail)
        answer = await client.get("/v1/models")
        problem_of(answer, 500, "internal_error")
        assert "secret" not in answer.text
        assert (await client.get("/health/live")).status_code == 200
