"""The addresses of the Open Inference Protocol, as they are routed and documented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from starlette.routing import BaseRoute

from service.api.call import Service
from service.api.oip import infer, models, repository, schemas, statistics
from service.api.oip.exchange import BINARY_TYPE
from service.api.routes import STATUS_TEXT, TIMEOUT, DirectRoute, Endpoint

MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"
_STATUS_TEXT = {
    **STATUS_TEXT,
    400: "Not JSON, or it does not fit the model: with what was expected and received",
    422: "The result is not finite",
    501: "Content encoding not known",
}
_READ = (401, 404, 503)
_INFER = (400, 401, 404, 409, 410, 413, 422, 500, 501, 503, 504)
_BINARY: dict[int | str, dict[str, Any]] = {
    200: {"content": {BINARY_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
}


def routes(service: Service) -> list[BaseRoute]:
    return [*_server_routes(service), *_repository_routes(service), *_model_routes(service)]


def _server_routes(service: Service) -> Iterator[DirectRoute]:
    yield _get(service, "/v2", models.server_metadata, _READ, summary="Server metadata", answer=schemas.ServerMetadata)
    yield _get(service, "/v2/", models.server_metadata, _READ, summary="Server metadata", include_in_schema=False)
    yield _get(service, "/v2/health/live", models.live, (), summary="Alive")
    yield _get(service, "/v2/health/ready", models.ready, (400,), summary="Ready")
    yield _get(
        service,
        "/v2/models/stats",
        statistics.all_statistics,
        _READ,
        summary="Statistics of all models",
        answer=schemas.ModelStatistics,
    )


def _repository_routes(service: Service) -> Iterator[DirectRoute]:
    calls: list[tuple[str, Endpoint, str, type[BaseModel], type[BaseModel] | None]] = [
        ("/v2/repository/index", repository.index, "Repository index", schemas.IndexRequest, schemas.Index),
        ("/v2/repository/models/{model}/load", repository.load, "Load a model", schemas.LoadRequest, None),
        ("/v2/repository/models/{model}/unload", repository.unload, "Unload a model", schemas.LoadRequest, None),
    ]
    for path, endpoint, summary, body, answer in calls:
        yield _route(
            service,
            "POST",
            path,
            endpoint,
            (400, 401, 404, 413, 501, 503),
            summary=summary,
            body=body,
            body_optional=True,
            any_type=True,
            answer=answer,
        )


def _model_routes(service: Service) -> Iterator[DirectRoute]:
    for base in (MODEL, VERSION):
        yield _route(
            service,
            "POST",
            base + "/infer",
            infer.infer,
            _INFER,
            summary="Infer",
            body=schemas.InferRequest,
            any_type=True,
            query={"x_request_timeout_ms": TIMEOUT},
            answer=schemas.InferAnswer,
            more_responses=_BINARY,
        )
        yield _get(service, base, models.model_metadata, _READ, summary="Model metadata", answer=schemas.ModelMetadata)
        yield _get(service, base + "/ready", models.model_ready, (400, 401, 503), summary="Model ready")
        yield _get(
            service,
            base + "/config",
            models.model_config,
            _READ,
            summary="Model configuration",
            answer=schemas.ModelConfiguration,
        )
        yield _get(
            service,
            base + "/stats",
            statistics.model_statistics,
            _READ,
            summary="Statistics of a model",
            answer=schemas.ModelStatistics,
        )


def _get(service: Service, path: str, endpoint: Endpoint, errors: tuple[int, ...], **rest: Any) -> DirectRoute:
    return _route(service, "GET", path, endpoint, errors, **rest)


def _route(
    service: Service, method: str, path: str, endpoint: Endpoint, errors: tuple[int, ...], **rest: Any
) -> DirectRoute:
    tags = ["open inference protocol"]
    return DirectRoute(service, method, path, endpoint, errors=errors, error_response=_error, tags=tags, **rest)


def _error(status: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/OipError"}
    return {"description": _STATUS_TEXT[status], "content": {"application/json": {"schema": schema}}}
