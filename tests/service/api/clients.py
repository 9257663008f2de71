"""The real app with real models, spoken to over ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import httpx

from service.__main__ import bind, make_config, make_ways
from service.api.call import Service
from service.app import create_app
from service.server import Server
from service.settings import Settings
from tests.service import onnx_models

SUM, TOKENS, LSTM, BIDIR, BROKEN = "running-sum", "token-counts", "lstm", "bidir", "broken"

DOUBLING = [{"kind": "output", "places": [0]}, {"kind": "hold"}]
"""Feedback of the running sum: it adds what it has to itself; the second feature goes on as it was."""


def write_repository(root: Path) -> Path:
    """Every kind of model, and one file that is none."""
    onnx_models.running_sum(root, SUM, features=2, feedback=DOUBLING)
    onnx_models.token_counts(root, TOKENS)
    onnx_models.lstm(root, LSTM, layers=2)
    onnx_models.lstm(root, BIDIR, bidirectional=True)
    broken = root / BROKEN / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no model")
    return root


@asynccontextmanager
async def open_client(
    repository: Path, *, clock: Callable[[], float] = time, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(model_repository=repository, **settings), clock)
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://carousel") as client,
    ):
        yield client


@dataclass
class Running:
    """A server in this process."""

    address: str
    service: Service
    server: Server


@asynccontextmanager
async def open_server(repository: Path, **fields: Any) -> AsyncIterator[Running]:
    """The app behind a real socket, as `python -m service` has it."""
    settings = Settings(model_repository=repository, port=0, **fields)
    app = create_app(settings)
    started = asyncio.Event()
    ways = make_ways(app)
    server = Server(make_config(app, settings, ways), app.state.service, ways, started.set)
    with bind(settings) as listener:
        host, port = listener.getsockname()[:2]
        async with app.router.lifespan_context(app):
            running = asyncio.create_task(server.serve(sockets=[listener]))
            await started.wait()
            try:
                yield Running(f"http://{host}:{port}", app.state.service, server)
            finally:
                server.should_exit = True
                await running


def problem_of(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document, after checking that it is one."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    document: dict[str, Any] = answer.json()
    assert document["code"] == code, document
    assert document["status"] == status
    assert document["instance"] == answer.request.url.path
    assert {"type", "title", "detail"} <= document.keys()
    return document
