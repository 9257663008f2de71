"""Is the process alive, may it be sent work, and its numbers."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.routing import BaseRoute

from service.api import schemas
from service.api.call import Call, Reply, Service
from service.api.routes import DirectRoute
from service.errors import Draining, ModelNotReady


def routes(service: Service) -> list[BaseRoute]:
    text: Any = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    tags: Any = {"tags": ["operation"]}
    return [
        DirectRoute(service, "GET", "/health/live", live, answer=schemas.Health, summary="Alive", **tags),
        DirectRoute(
            service, "GET", "/health/ready", ready, answer=schemas.Health, errors=(503,), summary="Ready", **tags
        ),
        DirectRoute(
            service, "GET", "/metrics", metrics, errors=(401,), summary="Prometheus", more_responses=text, **tags
        ),
    ]


async def live(call: Call) -> Reply:
    """200 as long as the process answers at all."""
    return call.answer({"status": "live"})


async def ready(call: Call) -> Reply:
    """200 once models are loaded and warm; 503 before that, while draining, and when no model could be loaded."""
    service = call.service
    if service.draining:
        raise Draining("The server is shutting down and takes no new work.")
    if not service.registry.ready:
        raise ModelNotReady("Models are being loaded.")
    if not service.registry.loaded():
        failed = service.registry.names()
        if not failed:
            raise ModelNotReady("The model repository is empty. Publish a model into it.")
        raise ModelNotReady("No model could be loaded. GET /v1/models has the reasons.", failed=failed)
    if stopped := [model.name for model in service.registry.loaded() if model.engine.failed]:
        raise ModelNotReady("An engine stopped by a fault of the server's own; restart it.", failed=stopped)
    return call.answer({"status": "ready"})


async def metrics(call: Call) -> Reply:
    """Queue, run and whole time in seconds, batch sizes, sequences and errors, in Prometheus' text format."""
    return Reply(call.service.metrics.render(), content_type=CONTENT_TYPE_LATEST)
