"""Every error a caller or operator can meet. Knows nothing of HTTP: the statuses stand in `service/api/errors.py`.

CarouselError
 ├── MalformedRequest      not JSON, wrong content type, unknown field
 ├── Unauthenticated       no key, or a wrong one
 ├── Forbidden             not allowed, whatever the key
 ├── NotFound
 │    ├── RouteNotFound
 │    ├── ModelNotFound
 │    ├── VersionNotFound
 │    └── SequenceNotFound
 ├── MethodNotAllowed
 ├── Conflict
 │    ├── SequenceExists
 │    ├── StepConflict     the caller counts other steps than we do
 │    ├── OutOfTurn        the call before it in its sequence failed
 │    ├── Stale            another process moved the sequence; it is read anew and the call runs again
 │    └── StateMoved       If-Match names a step that is past
 ├── SequenceGone          was there; expired, deleted or its version unloaded
 │    └── StateDamaged     what is stored is not what was written
 ├── TooLarge              body, chunk or batch over the limit
 ├── HeadTooLarge          the address and headers are
 ├── UnsupportedEncoding
 ├── Unprocessable
 │    ├── InvalidInput     shape, dtype or range does not fit the model
 │    ├── InvalidState
 │    ├── NotStreamable    the model needs whole sequences
 │    ├── NotGenerative    the model cannot feed itself
 │    └── NonFiniteResult
 ├── Unavailable
 │    ├── QueueFull
 │    ├── NoRoom           every slot is taken
 │    ├── Draining
 │    ├── ModelNotReady
 │    └── StoreUnavailable where committed state lives is away
 ├── DeadlineExceeded
 ├── EngineFailure         a run failed for a reason of ours
 └── StartupError
      ├── SettingsInvalid
      ├── ProviderUnavailable
      └── ModelInvalid     one file of the repository cannot be served
"""

from __future__ import annotations

from typing import Any


class CarouselError(Exception):
    """`message` says what was expected, what came and what to do; `fields` are the facts a program may want."""

    code = "error"
    title = "Error"

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields


class MalformedRequest(CarouselError):
    code, title = "malformed_request", "The request cannot be read"


class Unauthenticated(CarouselError):
    code, title = "unauthenticated", "A valid API key is needed"


class Forbidden(CarouselError):
    code, title = "forbidden", "Not allowed"


class NotFound(CarouselError):
    code, title = "not_found", "Not found"


class RouteNotFound(NotFound):
    code, title = "route_not_found", "No such address"


class ModelNotFound(NotFound):
    code, title = "model_not_found", "No such model"


class VersionNotFound(NotFound):
    code, title = "version_not_found", "No such model version"


class SequenceNotFound(NotFound):
    code, title = "sequence_not_found", "No such sequence"


class MethodNotAllowed(CarouselError):
    code, title = "method_not_allowed", "This address does not take that method"


class Conflict(CarouselError):
    code, title = "conflict", "Conflict"


class SequenceExists(Conflict):
    code, title = "sequence_exists", "The sequence id is taken"


class StepConflict(Conflict):
    code, title = "step_conflict", "The sequence stands at another step"


class OutOfTurn(Conflict):
    code, title = "out_of_turn", "The call before this one failed"


class Stale(Conflict):
    code, title = "stale", "Another process moved the sequence"


class StateMoved(Conflict):
    code, title = "state_moved", "The state moved on"


class SequenceGone(CarouselError):
    code, title = "sequence_gone", "The sequence has ended"


class StateDamaged(SequenceGone):
    code, title = "state_damaged", "The stored state is damaged"


class TooLarge(CarouselError):
    code, title = "too_large", "Over a limit of this server"


class HeadTooLarge(CarouselError):
    code, title = "head_too_large", "Over a limit of this server"


class UnsupportedEncoding(CarouselError):
    code, title = "unsupported_encoding", "Content encoding not supported"


class Unprocessable(CarouselError):
    code, title = "unprocessable", "The request does not fit the model"


class InvalidInput(Unprocessable):
    code, title = "invalid_input", "The inputs do not fit the model"


class InvalidState(Unprocessable):
    code, title = "invalid_state", "The state does not fit the model"


class NotStreamable(Unprocessable):
    code, title = "not_streamable", "The model needs whole sequences"


class NotGenerative(Unprocessable):
    code, title = "not_generative", "The model cannot feed itself"


class NonFiniteResult(Unprocessable):
    code, title = "non_finite_result", "The model's result is not finite"


class Unavailable(CarouselError):
    code, title = "unavailable", "Not available just now"


class QueueFull(Unavailable):
    code, title = "queue_full", "The queue is full"


class NoRoom(Unavailable):
    code, title = "no_room", "No slot is free"


class Draining(Unavailable):
    code, title = "draining", "The server is shutting down"


class ModelNotReady(Unavailable):
    code, title = "model_not_ready", "The model is not ready"


class StoreUnavailable(Unavailable):
    code, title = "store_unavailable", "The state store is not available"


class DeadlineExceeded(CarouselError):
    code, title = "deadline_exceeded", "The deadline passed before the work ran"


class EngineFailure(CarouselError):
    code, title = "engine_failure", "The run failed"


class StartupError(CarouselError):
    code, title = "startup_error", "The server cannot start"


class SettingsInvalid(StartupError):
    code, title = "settings_invalid", "A setting does not fit"


class ProviderUnavailable(StartupError):
    code, title = "provider_unavailable", "The execution provider is not available"


class WorkerFailed(StartupError):
    code, title = "worker_failed", "A worker process does not come up"


class ModelInvalid(StartupError):
    code, title = "model_invalid", "The model file cannot be served"
