"""What only the outermost layer sees: callers who are gone, and errors that nobody foresaw."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from starlette.types import Message

from service.api import edge
from service.app import create_app
from service.logs import configure_logs
from service.settings import Settings
from tests.service.api.clients import LSTM, SUM

pytestmark = pytest.mark.anyio
KEY, PAYLOAD = "alices-secret-key", 31415.5


def scope_of(app: FastAPI, method: str, path: str) -> dict[str, Any]:
    headers = [(b"x-api-key", KEY.encode())]
    return {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers, "app": app}


async def body() -> Message:
    return {"type": "http.request", "body": b'{"sequences": [{"inputs": [[%f, 0, 0]]}]}' % PAYLOAD}


@pytest.mark.parametrize("path", ["/health/live", "/nothing"])
async def test_a_failing_send_is_a_caller_who_is_gone(repository: Path, path: str) -> None:
    app, sent = create_app(Settings(model_repository=repository)), []

    async def send(message: Message) -> None:
        sent.append(message["type"])
        raise RuntimeError("unable to perform operation on a closed transport")

    with structlog.testing.capture_logs() as logs:
        await app(scope_of(app, "GET", path), body, send)
    assert sent == ["http.response.start"], "nothing more is sent"
    assert [line["status"] for line in logs] == [edge.CALLER_GONE]


@pytest.mark.parametrize("log_format", ["console", "json"])
async def test_an_unforeseen_error_is_logged_without_keys_or_payloads(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log_format: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    async def send(message: Message) -> None:
        pass

    settings = Settings(model_repository=repository, api_keys=(f"alice:{KEY}",), log_format=log_format)
    before = structlog.get_config()
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    configure_logs(settings)
    monkeypatch.setattr(edge, "log", structlog.get_logger())
    monkeypatch.setattr("service.api.predict.decode_body", fail)
    monkeypatch.setattr("service.registry.Registry.get", lambda *_: SimpleNamespace(spec=None))
    try:
        app = create_app(settings)
        await app(scope_of(app, "POST", f"/v1/models/{LSTM}/predict"), body, send)
    finally:
        structlog.configure(**before)
    log = capsys.readouterr().err
    assert "a bug" in log
    assert "in fail" in log
    assert KEY not in log
    assert str(PAYLOAD) not in log


async def test_work_stops_when_the_caller_leaves_in_the_middle(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.routes.WATCH_AFTER_SECONDS", 0)
    app = create_app(Settings(model_repository=repository))
    service = app.state.service
    sent: list[Message] = []
    steps = b'{"inputs": [' + b"[1,0]," * 20_000 + b"[1,0]]}"
    messages = iter([{"type": "http.request", "body": steps}])

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    async with app.router.lifespan_context(app):
        model = service.registry.get(SUM)
        sequence = await service.sequences.create("anonymous", model, sequence_id="left")
        with structlog.testing.capture_logs() as logs:
            await app(scope_of(app, "POST", f"/v1/models/{SUM}/sequences/left/steps"), receive, send)
        step, (state,) = await service.sequences.read_state(sequence)
        page = service.metrics.render().decode()
    assert [line["status"] for line in logs] == [edge.CALLER_GONE]
    assert sent == []
    assert (step, state.tolist()) == (0, [[0, 0]])
    assert f'carousel_queued_requests{{model="{SUM}",version="1"}} 0.0' in page
