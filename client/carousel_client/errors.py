"""What can go wrong. What the server says of a problem (RFC 9457) becomes the exception of its `code`.

CarouselError
 ├── ConnectionFailed      no answer came, or only a part
 ├── UnexpectedAnswer      what answered does not speak Carousel's contract
 ├── MalformedRequest
 ├── Unauthenticated
 ├── Forbidden
 ├── NotFound
 │    ├── RouteNotFound
 │    ├── ModelNotFound
 │    ├── VersionNotFound
 │    └── SequenceNotFound
 ├── MethodNotAllowed
 ├── Conflict
 │    ├── SequenceExists
 │    ├── StepConflict     the sequence stands at `expected_step`
 │    ├── OutOfTurn        a step before this one failed, so this one was not run
 │    ├── Stale
 │    └── StateMoved
 ├── SequenceGone          was there, is gone: `reason`
 │    └── StateDamaged
 ├── TooLarge              over `limit`
 │    └── HeadTooLarge
 ├── UnsupportedEncoding
 ├── Unprocessable         does not fit at `place`: `expected`, `received`
 │    ├── InvalidInput
 │    ├── InvalidState
 │    ├── NotStreamable
 │    ├── NotGenerative
 │    └── NonFiniteResult
 ├── RateLimited
 ├── Unavailable           not just now
 │    ├── QueueFull
 │    ├── NoRoom
 │    ├── Draining
 │    ├── ModelNotReady
 │    └── StoreUnavailable
 ├── DeadlineExceeded
 └── EngineFailure
      └── InternalError
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class CarouselError(Exception):
    """Everything that this package raises by itself. `problem` is the server's document, {} where it said nothing."""

    code: ClassVar[str] = "error"

    def __init__(
        self, message: str, problem: Mapping[str, Any] | None = None, *, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.problem: dict[str, Any] = dict(problem or {})
        self.retry_after = retry_after
        """Seconds that the server asks to be left alone."""

    @property
    def status(self) -> int | None:
        """Of the HTTP answer; None where there was none, as for inputs that were not sent."""
        status = self.problem.get("status")
        return status if isinstance(status, int) else None

    @property
    def expected(self) -> Any:
        """What would have been right, where there is something to compare."""
        return self.problem.get("expected")

    @property
    def received(self) -> Any:
        """What came in its place."""
        return self.problem.get("received")


class ConnectionFailed(CarouselError):
    """Whether the call was carried out is not known. Repeating a numbered step does no harm."""

    code = "connection_failed"


class UnexpectedAnswer(CarouselError):
    code = "unexpected_answer"


class MalformedRequest(CarouselError):
    code = "malformed_request"


class Unauthenticated(CarouselError):
    code = "unauthenticated"


class Forbidden(CarouselError):
    code = "forbidden"


class NotFound(CarouselError):
    code = "not_found"


class RouteNotFound(NotFound):
    code = "route_not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class VersionNotFound(NotFound):
    code = "version_not_found"


class SequenceNotFound(NotFound):
    code = "sequence_not_found"


class MethodNotAllowed(CarouselError):
    code = "method_not_allowed"


class Conflict(CarouselError):
    code = "conflict"


class SequenceExists(Conflict):
    code = "sequence_exists"


class StepConflict(Conflict):
    code = "step_conflict"

    @property
    def expected_step(self) -> int | None:
        """Where the sequence stands."""
        step = self.problem.get("expected_step")
        return step if isinstance(step, int) else None


class OutOfTurn(Conflict):
    code = "out_of_turn"


class Stale(Conflict):
    code = "stale"


class StateMoved(Conflict):
    code = "state_moved"


class SequenceGone(CarouselError):
    code = "sequence_gone"

    @property
    def reason(self) -> str | None:
        """`expired`, `deleted` or `version_unloaded`, among others."""
        reason = self.problem.get("reason")
        return reason if isinstance(reason, str) else None


class StateDamaged(SequenceGone):
    code = "state_damaged"


class TooLarge(CarouselError):
    code = "too_large"

    @property
    def limit(self) -> int | None:
        limit = self.problem.get("limit")
        return limit if isinstance(limit, int) else None

    @property
    def limit_name(self) -> str | None:
        """Of what: `steps`, `sequences`, `body_bytes`, ..."""
        name = self.problem.get("limit_name")
        return name if isinstance(name, str) else None


class HeadTooLarge(TooLarge):
    code = "head_too_large"


class UnsupportedEncoding(CarouselError):
    code = "unsupported_encoding"


class Unprocessable(CarouselError):
    code = "unprocessable"

    @property
    def place(self) -> str | None:
        """Where it does not fit, for example `sequences[2].inputs[17][3]`."""
        place = self.problem.get("place")
        return place if isinstance(place, str) else None

    @property
    def index(self) -> int | None:
        """Of the sequence that it is about, in a call of many."""
        index = self.problem.get("index")
        return index if isinstance(index, int) else None

    @property
    def reason(self) -> str | None:
        """Of a state token that is refused: `expired`, `tampered`, `foreign_model`, ..."""
        reason = self.problem.get("reason")
        return reason if isinstance(reason, str) else None


class InvalidInput(Unprocessable):
    code = "invalid_input"


class InvalidState(Unprocessable):
    code = "invalid_state"


class NotStreamable(Unprocessable):
    code = "not_streamable"


class NotGenerative(Unprocessable):
    code = "not_generative"


class NonFiniteResult(Unprocessable):
    code = "non_finite_result"


class RateLimited(CarouselError):
    code = "rate_limited"


class Unavailable(CarouselError):
    code = "unavailable"


class QueueFull(Unavailable):
    code = "queue_full"


class NoRoom(Unavailable):
    code = "no_room"


class Draining(Unavailable):
    code = "draining"


class ModelNotReady(Unavailable):
    code = "model_not_ready"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class DeadlineExceeded(CarouselError):
    code = "deadline_exceeded"


class EngineFailure(CarouselError):
    code = "engine_failure"


class InternalError(EngineFailure):
    code = "internal_error"


def _kinds(base: type[CarouselError]) -> Iterator[type[CarouselError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _kinds(kind)


_BY_CODE = {kind.code: kind for kind in _kinds(CarouselError)}
_BY_STATUS: dict[int, type[CarouselError]] = {
    400: MalformedRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    409: Conflict,
    410: SequenceGone,
    413: TooLarge,
    415: UnsupportedEncoding,
    422: Unprocessable,
    429: RateLimited,
    431: HeadTooLarge,
    500: EngineFailure,
    503: Unavailable,
    504: DeadlineExceeded,
}


def from_answer(status: int, content: bytes, headers: Mapping[str, str]) -> CarouselError:
    """What an HTTP answer that is no success says; in between there may be a balancer that speaks no JSON."""
    retry_after = seconds_to_wait(headers.get("retry-after"))
    try:
        problem = json.loads(content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "detail" not in problem:
        text = " ".join(content[:200].decode("utf-8", "replace").split())
        kind = _BY_STATUS.get(status, UnexpectedAnswer)
        return kind(
            f"Status {status}, without a problem document: {text!r}", {"status": status}, retry_after=retry_after
        )
    return from_problem({"status": status, **problem}, retry_after=retry_after)


def from_problem(problem: Mapping[str, Any], *, retry_after: float | None = None) -> CarouselError:
    """The exception for a problem document; for a code that is not known here, by its status."""
    kind = _BY_CODE.get(str(problem.get("code"))) or _BY_STATUS.get(problem.get("status", 0), CarouselError)
    return kind(str(problem.get("detail", "")), problem, retry_after=retry_after)


def seconds_to_wait(header: str | None) -> float | None:
    """Of `Retry-After`. The form that is a date is left to the back-off: it would need the server's clock."""
    return float(header) if header and re.fullmatch(r"\d{1,9}(\.\d+)?", header.strip()) else None
