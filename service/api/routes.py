"""A route that runs as plain ASGI and is still documented by FastAPI.

FastAPI's own endpoint path costs more than a small model's step: it solves dependencies, validates into pydantic models
and serialises their fields one by one. Here the endpoint gets the raw call and returns ready bytes; the pydantic
models only describe the body in OpenAPI. Tests hold the two to the same verdict.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, TypeVar

from fastapi import Body, Header, Path, Query
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from service.api.body import CallerGone, pick_codec, read_body
from service.api.call import MAX_TIMEOUT_MS, Call, Reply, Service, StreamedReply, send_reply, send_streamed
from service.api.schemas import ID_SCHEMA
from service.protocol.answers import PROBLEM_TYPE

Endpoint = Callable[[Call], Awaitable[Reply | StreamedReply]]
T = TypeVar("T")

WATCH_AFTER_SECONDS = 0.02
"""Most calls are over before it pays to look whether the caller is still there."""

VERSION = Annotated[int | None, Query(ge=1, description="Pins a model version; otherwise the newest that is ready.")]
TIMEOUT = Annotated[
    int | None,
    Header(
        alias="X-Request-Timeout-Ms",
        ge=1,
        le=MAX_TIMEOUT_MS,
        description="Answer 504, with nothing committed, unless the work ran within so many milliseconds.",
    ),
]
_PATH = {
    "model": Annotated[str, Path(description="Name of a model.")],
    "sequence_id": Annotated[str, Path(description="Id of a sequence.", json_schema_extra=ID_SCHEMA)],
    "version": Annotated[str, Path(description="A version of the model; the newest where it is left out.")],
    "file": Annotated[str, Path()],
}
STATUS_TEXT = {
    400: "Not JSON, wrong content type or unknown field",
    401: "No key, or a wrong one",
    404: "No such model, version or sequence",
    409: "Step conflict, id taken, or the state moved on",
    410: "Was there, is gone: with the reason",
    413: "Body, chunk or batch over the limit: with the limit",
    415: "Content encoding not known",
    422: "Shape, dtype, range or state does not fit the model; non-finite result",
    500: "The run failed; the state is what it was",
    503: "Overloaded, draining or not ready, with Retry-After",
    504: "The caller's deadline passed; nothing was committed",
}


class DirectRoute(APIRoute):
    """`endpoint(call) -> Reply` or `StreamedReply`. The path's parameters and these arguments say what OpenAPI shows.

    `body` is the model of the body, which is then read; `query` names further parameters. With `any_type` the body is
    read whatever its Content-Type says. `error_response` describes an error of a status, a problem document without.
    """

    def __init__(
        self,
        service: Service,
        method: str,
        path: str,
        endpoint: Endpoint,
        *,
        body: type[BaseModel] | None = None,
        body_optional: bool = False,
        query: dict[str, Any] | None = None,
        answer: type[BaseModel] | None = None,
        status: int = 200,
        errors: tuple[int, ...] = (),
        more_responses: dict[int | str, dict[str, Any]] | None = None,
        msgpack: bool = False,
        any_type: bool = False,
        error_response: Callable[[int], dict[str, Any]] | None = None,
        **documentation: Any,
    ) -> None:
        describe = error_response or _problem_response
        stand_in = _stand_in(path, endpoint, body, body_optional, query or {})
        super().__init__(
            path,
            stand_in,
            methods=[method],
            response_model=answer,
            status_code=status,
            responses={**(more_responses or {}), **{code: describe(code) for code in errors}},
            **documentation,
        )
        self.method = method
        self._service = service
        self._endpoint = endpoint
        self._has_body = body is not None
        self._msgpack = msgpack
        self._any_type = any_type

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != self.method:
            raise HTTPException(405)
        call = Call(scope, self._service)
        if self._has_body:
            if not self._any_type:
                call.codec = pick_codec(scope, msgpack=self._msgpack)
            call.body = await read_body(scope, receive, self._service.settings.max_body_bytes)
        reply = await _while_caller_waits(self._endpoint(call), receive)
        if isinstance(reply, StreamedReply):
            await _while_caller_waits(send_streamed(send, reply), receive)
        else:
            await send_reply(send, reply)


class DirectTable:
    """Finds the routes that end in a fixed word, `.../steps`, by one look-up; a router asks each route in turn."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._routes: dict[tuple[str, int, str], tuple[DirectRoute, list[tuple[int, str]], list[tuple[int, str]]]] = {}
        for route in routes:
            if not isinstance(route, DirectRoute) or route.path.endswith("}"):
                continue
            parts = list(enumerate(route.path.split("/")))
            names = [(n, part[1:-1]) for n, part in parts if part.startswith("{")]
            words = [(n, part) for n, part in parts if not part.startswith("{")]
            self._routes[route.method, len(parts), parts[-1][1]] = route, names, words

    def find(self, scope: Scope) -> DirectRoute | None:
        """The route of this call, its path's parameters put into `scope`; None leaves it to the router."""
        parts = scope["path"].split("/")
        found = self._routes.get((scope["method"], len(parts), parts[-1]))
        if found is None or scope.get("root_path"):
            return None
        route, names, words = found
        if any(parts[n] != word for n, word in words) or not all(parts[n] for n, _ in names):
            return None
        scope["path_params"] = {name: parts[n] for n, name in names}
        scope["route"] = route
        return route


async def _while_caller_waits(work: Awaitable[T], receive: Receive) -> T:
    """Await `work`; cancel it when the connection closes. Raises CallerGone then."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "ASGI servers run each call in a task"
    watchers: list[asyncio.Task[None]] = []
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    timer = loop.call_later(WATCH_AFTER_SECONDS, lambda: watchers.append(loop.create_task(watch())))
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise CallerGone from None
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()


def _stand_in(
    path: str,
    endpoint: Endpoint,
    body: type[BaseModel] | None,
    body_optional: bool,
    query: dict[str, Any],
) -> Callable[..., Any]:
    """A function with the signature that FastAPI documents; it is never called."""

    async def stand_in(**_: Any) -> None:
        raise AssertionError("DirectRoute.handle runs the endpoint")

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(n, keyword, annotation=a) for n, a in _PATH.items() if f"{{{n}}}" in path]
    parameters += [inspect.Parameter(n, keyword, annotation=a, default=None) for n, a in query.items()]
    if body is not None:
        default = None if body_optional else inspect.Parameter.empty
        parameters.append(inspect.Parameter("body", keyword, annotation=Annotated[body, Body()], default=default))
    stand_in.__name__ = endpoint.__name__
    stand_in.__doc__ = endpoint.__doc__
    stand_in.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return stand_in


def _problem_response(status: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": STATUS_TEXT[status], "content": {PROBLEM_TYPE: {"schema": schema}}}
