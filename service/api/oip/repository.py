"""The protocol's repository extension: what there is, and loading and unloading where the operator allows it."""

from __future__ import annotations

from service.api.call import Call, Reply
from service.api.oip.models import not_ready
from service.errors import InvalidInput, ModelNotReady
from service.protocol.arrays import LARGE_BYTES
from service.protocol.codec import JSON, decode_body
from service.protocol.oip.bodies import IndexBody, LoadBody
from service.registry import VersionState

_NOTHING_TO_DO = {"unload_dependents"}
"""Parameters that mean nothing here: no model depends on another."""


async def index(call: Call) -> Reply:
    """Every version in the repository, those that are not ready with the reason; with `ready` only those that are."""
    only_ready = decode_body(JSON, IndexBody, call.body or b"{}").ready
    entries = [
        {"name": entry.name, "version": str(entry.version), "state": entry.state, "reason": entry.reason}
        for entry in call.service.registry.index()
        if not only_ready or entry.state is VersionState.READY
    ]
    return call.answer(entries)


async def load(call: Call) -> Reply:
    """Load the versions of a model that are not ready; 503 unless CAROUSEL_MODEL_CONTROL allows it."""
    _check_parameters(call)
    try:
        await call.service.registry.load_model(call.path("model"))
    except ModelNotReady as error:
        return not_ready(call, error)
    return Reply()


async def unload(call: Call) -> Reply:
    """Take no new work for a model, and end its sequences; 503 unless CAROUSEL_MODEL_CONTROL allows it."""
    _check_parameters(call)
    await call.service.registry.unload_model(call.path("model"))
    return Reply()


def _check_parameters(call: Call) -> None:
    large = len(call.body) > LARGE_BYTES  # a file: nothing that is read here
    parameters = {} if large else decode_body(JSON, LoadBody, call.body or b"{}").parameters or {}
    unknown = sorted(parameters.keys() - _NOTHING_TO_DO)
    if large or unknown:
        raise InvalidInput(
            "parameters: a model is loaded as it lies in the repository; its configuration and files cannot be sent.",
            received=[name[:80] for name in unknown[:20]],
        )
