"""The one table: domain error -> status, and the problem document (RFC 9457) that says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from service import errors
from service.api.call import Header, Reply
from service.errors import CarouselError
from service.protocol.answers import PROBLEM_TYPE

STATUS: dict[type[CarouselError], int] = {
    errors.MalformedRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.Conflict: 409,
    errors.SequenceGone: 410,
    errors.TooLarge: 413,
    errors.UnsupportedEncoding: 415,
    errors.Unprocessable: 422,
    errors.HeadTooLarge: 431,
    errors.EngineFailure: 500,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
}
"""A class stands for its subclasses too. StartupError is not here: it ends the process and meets no caller."""

RETRY_AFTER_SECONDS = 1
INTERNAL_ERROR = 500
INTERNAL_DETAIL = "Something went wrong in the server. The state is what it was before the call."


def status_of(error: CarouselError) -> int:
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), INTERNAL_ERROR)


def problem(error: CarouselError, instance: str) -> Reply:
    """The answer to a call that failed. `instance` is the path of the call."""
    status, fields = status_of(error), dict(error.fields)
    headers = error_headers(error, status, fields)
    return _reply(error.code, error.title, status, error.message, instance, fields, headers)


def internal_problem(instance: str) -> Reply:
    """For an error that nobody foresaw: the log has it, the caller does not."""
    return _reply("internal_error", "Internal error", INTERNAL_ERROR, INTERNAL_DETAIL, instance, {}, [])


def error_headers(error: CarouselError, status: int, fields: dict[str, Any]) -> list[Header]:
    """The headers that belong to an error; what they alone say is taken out of `fields`."""
    return list(_headers(error, status, fields.pop("retry_after", RETRY_AFTER_SECONDS), fields))


def _reply(
    code: str, title: str, status: int, detail: str, instance: str, fields: dict[str, object], headers: list[Header]
) -> Reply:
    document: dict[str, object] = {
        "type": f"urn:carousel:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        # what a path may hold and UTF-8 may not: an error must never fail to be told
        "instance": instance.encode("utf-8", "replace").decode(),
        "code": code,
    }
    body = orjson.dumps({**document, **fields, **document}, default=str)
    return Reply(body, status, PROBLEM_TYPE, headers)


def _headers(error: CarouselError, status: int, retry_after: float, fields: dict[str, object]) -> Iterator[Header]:
    if status == 503:
        yield b"retry-after", str(max(1, round(retry_after))).encode()
    if isinstance(error, errors.Unauthenticated):
        yield b"www-authenticate", b'Bearer realm="carousel"'
    if isinstance(error, errors.MethodNotAllowed):
        yield b"allow", ", ".join(str(method) for method in fields["expected"]).encode()  # type: ignore[attr-defined]
