"""Errors as the Open Inference Protocol tells them, `{"error": "..."}`, and the statuses that its clients expect.

`code` and the facts that a program may want stand beside `error`; clients of the protocol read no more than that.
"""

from __future__ import annotations

import orjson

from service import errors
from service.api.call import Reply
from service.api.errors import INTERNAL_DETAIL, INTERNAL_ERROR, error_headers
from service.api.errors import status_of as native_status_of
from service.errors import CarouselError

PREFIX = "/v2"

STATUS: dict[type[CarouselError], int] = {
    errors.Unprocessable: 400,
    errors.NonFiniteResult: 422,
    errors.UnsupportedEncoding: 501,
}
"""Where they differ from those under /v1. The nearest class of an error's own decides."""

_UNSUPPORTED = {
    "/trace/": "trace settings are",
    "/logging": "log settings are",
    "/systemsharedmemory/": "shared memory is",
    "/cudasharedmemory/": "shared memory is",
    "/generate": "the generate extension is",
}


def is_oip(path: str) -> bool:
    return path == PREFIX or path.startswith(PREFIX + "/")


def status_of(error: CarouselError) -> int:
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), native_status_of(error))


def problem(error: CarouselError, instance: str) -> Reply:
    """The answer to a call that failed. `instance` is the path of the call."""
    status, fields = status_of(error), dict(error.fields)
    headers = error_headers(error, status, fields)
    message = _no_route(instance) if isinstance(error, errors.RouteNotFound) else error.message
    return Reply(_body(message, error.code, fields), status, headers=headers)


def internal_problem(instance: str) -> Reply:
    """For an error that nobody foresaw: the log has it, the caller does not."""
    return Reply(_body(INTERNAL_DETAIL, "internal_error", {}), INTERNAL_ERROR)


def _body(message: str, code: str, fields: dict[str, object]) -> bytes:
    document = {"error": message.encode("utf-8", "replace").decode(), "code": code}
    return orjson.dumps({**document, **fields, **document}, default=str)


def _no_route(path: str) -> str:
    """A client that knows other servers may ask for what this one does not have: say so by its name."""
    what = next((what for part, what in _UNSUPPORTED.items() if part in path), None)
    if what is None:
        return "There is nothing at this address. /docs lists the addresses of this server."
    return f"Unsupported: {what} not part of this server. GET /v2 lists its extensions."
