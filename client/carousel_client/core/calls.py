"""Calls without I/O: a piece of work is a generator that yields what is to be sent or waited for, and gets answers.

The blocking and the asynchronous client differ only in how they carry these effects out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from carousel_client.core.retries import Attempts, Pace
from carousel_client.errors import CarouselError, ConnectionFailed, UnexpectedAnswer, from_answer

T = TypeVar("T")

NO_QUERY: Mapping[str, str] = {}
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""After these the server knows nothing of the call, whatever it was."""


@dataclass(frozen=True, slots=True)
class Send:
    """To be answered with the response; one that is `streamed` and a success with its body not read."""

    method: str
    path: str
    content: bytes | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    streamed: bool = False

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        return http.build_request(
            self.method, self.path, content=self.content, params=self.query or None, headers=self.headers
        )


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


Effect = Send | Pause
Work = Generator[Effect, httpx.Response | None, T]
"""The driver sends a response for each Send and None for each Pause, or throws httpx.TransportError."""


@dataclass(frozen=True, slots=True)
class Ask(Generic[T]):
    """One call, and how its answer is read. `repeatable`: done twice, it does no more than once."""

    send: Send
    read: Callable[[Any], T]
    """Of the answer's JSON."""
    repeatable: bool = True


def get(path: str, read: Callable[[Any], T], query: Mapping[str, str] = NO_QUERY) -> Ask[T]:
    return Ask(Send("GET", path, query=query), read)


def post(
    path: str,
    body: Mapping[str, Any],
    read: Callable[[Any], T],
    query: Mapping[str, str] = NO_QUERY,
    *,
    repeatable: bool = True,
) -> Ask[T]:
    headers = {"Content-Type": "application/json"}
    return Ask(Send("POST", path, to_json(body), query, headers), read, repeatable)


def to_json(body: Mapping[str, Any]) -> bytes:
    """Fields that are None are left out."""
    kept = {name: value for name, value in body.items() if value is not None}
    return json.dumps(kept, separators=(",", ":"), allow_nan=False).encode()


def call(pace: Pace, ask: Ask[T]) -> Work[T]:
    """The answer, read. Raises CarouselError once there is nothing left to try."""
    response = yield from respond(pace, ask.send, repeatable=ask.repeatable)
    try:
        return ask.read(response.json() if response.content else None)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UnexpectedAnswer(
            f"{ask.send.method} {ask.send.path} got an answer that cannot be read: {error}"
        ) from error


def respond(pace: Pace, send: Send, *, repeatable: bool) -> Work[httpx.Response]:
    """The first response that is a success."""
    attempts = Attempts(pace)
    while True:
        failure: CarouselError
        try:
            response = yield send
        except httpx.TransportError as error:
            failure = connection_failed(error)
            if not (repeatable or isinstance(error, NOT_SENT)):
                raise failure from error
        else:
            assert response is not None, "a Send is answered with a response"
            if response.is_success:
                return response
            failure = from_answer(response.status_code, response.content, response.headers)
            if not repeatable or not pace.wants_again(failure):
                raise failure
        yield Pause(attempts.wait_after(failure))


def connection_failed(error: Exception) -> ConnectionFailed:
    failure = ConnectionFailed(f"No answer: {str(error) or type(error).__name__}")
    failure.__cause__ = error
    return failure
