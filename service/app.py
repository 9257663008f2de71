"""The only place where objects are wired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from time import time
from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from service import __version__
from service.api import generate, health, models, pages, predict, sequence_routes
from service.api.call import Service
from service.api.edge import Edge
from service.api.oip import routes as oip
from service.api.stream import Streams
from service.errors import StoreUnavailable
from service.metrics import Metrics
from service.registry import Registry
from service.rollout import Rollouts
from service.sequences import Sequences
from service.settings import Settings
from service.state_tokens import StateTokens
from service.stores.opening import open_store
from service.stores.store import Store
from service.token_keys import find_keys

SWEEP_SECONDS = 1.0
LEAVE_SECONDS = 5.0
"""What a server may take to leave once it has drained; its successor waits for the file of states until then."""


class App(FastAPI):
    """FastAPI's routes and document behind our edge, which takes the place of its middleware and error handlers."""

    edge: Edge
    streams: Streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["app"] = self
            await self.edge(scope, receive, send)
        elif scope["type"] == "websocket":
            await self.streams(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings, clock: Callable[[], float] = time) -> App:
    """An app that loads its models when its lifespan begins. `clock` is what leases go by, seconds since the epoch."""
    metrics = Metrics()
    registry = Registry(settings, metrics)
    store = open_store(
        settings.state_store,
        synchronous=settings.sqlite_synchronous,
        patience_seconds=settings.drain_seconds + LEAVE_SECONDS,
        clock=clock,
    )
    sequences = registry.holder = Sequences(registry, settings, metrics, clock, store)
    tokens = StateTokens(settings.token_ttl_seconds, clock)
    service = Service(settings, metrics, registry, sequences, Rollouts(sequences), tokens)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await registry.load()  # first: of a file of states the server before this one may have to let go
        await store.open()
        with suppress(StoreUnavailable):
            tokens.use(await find_keys(settings, store))
        chores = [asyncio.create_task(work, name=name) for name, work in _chores(service, store).items()]
        try:
            yield
        finally:
            service.drain()
            for chore in chores:
                chore.cancel()
            await registry.close(settings.drain_seconds)
            await store.close()

    app = App(
        title="Carousel",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # pages.py serves the document and its page, without a CDN
    )
    for part in (predict, sequence_routes, generate, models, oip, health, pages):
        app.router.routes.extend(part.routes(service))
    app.edge = Edge(app.router, service)
    app.streams = Streams(service)
    app.state.service = service
    return app


def _chores(service: Service, store: Store) -> dict[str, Coroutine[Any, Any, None]]:
    """What is done beside the calls, by name."""
    settings, registry = service.settings, service.registry
    chores = {
        "sweep expired sequences": _sweep(service.sequences),
        "let go of models": _every(SWEEP_SECONDS, registry.let_go),
    }
    if settings.model_poll_seconds:
        chores["look for models"] = _every(settings.model_poll_seconds, registry.refresh)
    if not service.tokens.ready:  # the store that keeps the key is away
        chores["find token keys"] = _find_keys(service.tokens, settings, store)
    return chores


async def _sweep(sequences: Sequences) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        with suppress(StoreUnavailable):
            # a million leases may end in the same second: in portions, so that calls go on meanwhile
            while await sequences.expire():  # noqa: ASYNC110
                await asyncio.sleep(0)
            await sequences.count()


async def _find_keys(tokens: StateTokens, settings: Settings, store: Store) -> None:
    while not tokens.ready:
        await asyncio.sleep(SWEEP_SECONDS)
        with suppress(StoreUnavailable):
            tokens.use(await find_keys(settings, store))


async def _every(seconds: float, do: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        with suppress(StoreUnavailable):
            await do()
