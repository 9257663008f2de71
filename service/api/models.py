"""GET /v1/models: what is served, and the card of each model."""

from __future__ import annotations

from typing import Any

from starlette.routing import BaseRoute

from service.api import schemas
from service.api.call import Call, Reply, Service
from service.api.routes import VERSION, DirectRoute
from service.model_spec import StateSpec, TensorSpec
from service.registry import LoadedModel, Registry, VersionState
from service.settings import Settings


def routes(service: Service) -> list[BaseRoute]:
    errors, tags = (401, 404, 422, 503), ["models"]
    return [
        DirectRoute(
            service,
            "GET",
            "/v1/models",
            list_models,
            answer=schemas.ModelList,
            errors=(401, 503),
            tags=tags,
            summary="List models",
        ),
        DirectRoute(
            service,
            "GET",
            "/v1/models/{model}",
            card,
            answer=schemas.ModelCard,
            errors=errors,
            tags=tags,
            summary="Model card",
            query={"version": VERSION},
        ),
    ]


async def list_models(call: Call) -> Reply:
    """Every model of the repository, also those that could not be loaded, with the reason."""
    registry = call.service.registry
    return call.answer({"models": [_line(registry, name) for name in registry.names()]})


async def card(call: Call) -> Reply:
    """Inputs and outputs, states, size, metrics beside their published references, data and licence, provider."""
    model = call.model
    return call.answer(_card(model, call.service.settings))


def _line(registry: Registry, name: str) -> dict[str, Any]:
    ready, others = registry.versions(name)
    line: dict[str, Any] = {"name": name, "versions": [model.version for model in ready]}
    if ready:
        newest = ready[-1]
        spec = newest.spec
        described = {"task": spec.task, "cell": spec.cell, "description": spec.description}
        line |= {"version": newest.version, "ready": True, **described}
    else:
        line |= {"version": others[-1].version, "ready": False, "task": None, "cell": None, "description": ""}
        line["reason"] = others[-1].reason
    if failed := [entry for entry in others if entry.state is VersionState.UNAVAILABLE]:
        line["failed_versions"] = [{"version": entry.version, "reason": entry.reason} for entry in failed]
    return line


def _card(model: LoadedModel, settings: Settings) -> dict[str, Any]:
    spec = model.spec
    kept = spec.model_dump(mode="json", exclude={"format", "inputs", "outputs", "states"})
    limits = ("max_steps", "max_batch", "max_sequences", "max_body_bytes", "sequence_ttl_seconds", "max_ttl_seconds")
    return {
        **kept,
        "name": model.name,
        "version": model.version,
        "ready": True,
        "inputs": [_tensor(tensor) for tensor in spec.inputs],
        "outputs": [_tensor(tensor) for tensor in spec.outputs],
        "states": [_state(state) for state in spec.states],
        "provider": model.provider,
        "fingerprint": model.fingerprint,
        "limits": {name: getattr(settings, name) for name in limits},
    }


def _state(state: StateSpec) -> dict[str, Any]:
    described = {"name": state.name, "dtype": state.dtype, "shape": state.row_shape}
    return {**described, "required": True} if state.required else described


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    # shape as callers send it: per sequence, without the batch axis
    described = tensor.model_dump(mode="json", exclude={"shape"}, exclude_none=True)
    return {**described, "shape": ["time", *tensor.step_shape]}
