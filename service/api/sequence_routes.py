"""The addresses of stateful sequences, as they are routed and documented."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Query
from starlette.routing import BaseRoute

from service.api import schemas, sequences
from service.api.call import Service
from service.api.routes import TIMEOUT, VERSION, DirectRoute, Endpoint
from service.api.sequences import MAX_PAGE, PAGE

ALL = "/v1/models/{model}/sequences"
ONE = ALL + "/{sequence_id}"
_READ = (401, 404, 410, 422, 503)
_WRITE = (400, 401, 404, 409, 410, 413, 415, 422, 503)
_VERSION = {"version": VERSION}
_LIMIT = Annotated[int, Query(ge=1, le=MAX_PAGE, description=f"Sequences on this page; {PAGE} unless told.")]
_CURSOR = Annotated[str | None, Query(description="`next_cursor` of the page before.")]
_IF_MATCH = Annotated[
    str | None, Header(alias="If-Match", description='Overwrite only if the sequence stands at this step: `"40"`.')
]


def routes(service: Service) -> list[BaseRoute]:
    def route(method: str, path: str, endpoint: Endpoint, errors: tuple[int, ...], **rest: Any) -> DirectRoute:
        return DirectRoute(service, method, path, endpoint, errors=errors, tags=["stateful"], **rest)

    return [
        route(
            "POST",
            ONE + "/steps",
            sequences.steps,
            (*_WRITE, 500, 504),
            summary="Run the next steps",
            body=schemas.StepsRequest,
            answer=schemas.StepsAnswer,
            query={**_VERSION, "x_request_timeout_ms": TIMEOUT},
            msgpack=True,
        ),
        route(
            "POST",
            ALL,
            sequences.create,
            _WRITE,
            summary="Begin a sequence",
            body=schemas.CreateRequest,
            body_optional=True,
            answer=schemas.Position,
            status=201,
            query=_VERSION,
        ),
        route(
            "GET",
            ALL,
            sequences.list_sequences,
            (401, 404, 422, 503),
            summary="List one's own sequences",
            answer=schemas.SequencePage,
            query={"limit": _LIMIT, "cursor": _CURSOR},
        ),
        route(
            "GET",
            ONE,
            sequences.read,
            _READ,
            summary="Where a sequence stands",
            answer=schemas.SequenceInfo,
            query=_VERSION,
        ),
        route("DELETE", ONE, sequences.delete, _READ, summary="End a sequence", status=204, query=_VERSION),
        route(
            "GET",
            ONE + "/state",
            sequences.read_sequence_state,
            _READ,
            summary="Read the state",
            answer=schemas.StateAnswer,
            query=_VERSION,
        ),
        route(
            "PUT",
            ONE + "/state",
            sequences.put_state,
            _WRITE,
            summary="Create or overwrite at a state",
            body=schemas.StateRequest,
            answer=schemas.Position,
            query={**_VERSION, "if_match": _IF_MATCH},
        ),
        route(
            "POST",
            ONE + "/fork",
            sequences.fork,
            _WRITE,
            summary="Fork a sequence",
            body=schemas.ForkRequest,
            body_optional=True,
            answer=schemas.Position,
            status=201,
            query=_VERSION,
        ),
    ]
