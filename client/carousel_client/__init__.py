"""Speaks to a Carousel server.

`Client` blocks, `AsyncClient` is for asyncio; both have the same methods. Arrays: T steps, F features, O outputs,
L layers, H hidden units. Everything that goes wrong is a `CarouselError`: see `carousel_client.errors`.
"""

from carousel_client.aio.client import AsyncClient, AsyncModel
from carousel_client.aio.generation import AsyncGeneration
from carousel_client.aio.sequence import AsyncSequence
from carousel_client.aio.stream import AsyncStream
from carousel_client.core.results import (
    Generated,
    GeneratedStep,
    ModelCard,
    ModelLine,
    Position,
    Prediction,
    StateAt,
    Stepped,
    Tensor,
)
from carousel_client.core.retries import Retry
from carousel_client.errors import (
    CarouselError,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidInput,
    InvalidState,
    ModelNotFound,
    NotFound,
    RateLimited,
    SequenceExists,
    SequenceGone,
    SequenceNotFound,
    StateMoved,
    StepConflict,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
    Unprocessable,
)
from carousel_client.sync.client import Client, Model
from carousel_client.sync.generation import Generation
from carousel_client.sync.sequence import Sequence
from carousel_client.sync.stream import Pending, Stream

__all__ = [
    "AsyncClient",
    "AsyncGeneration",
    "AsyncModel",
    "AsyncSequence",
    "AsyncStream",
    "CarouselError",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Generated",
    "GeneratedStep",
    "Generation",
    "InvalidInput",
    "InvalidState",
    "Model",
    "ModelCard",
    "ModelLine",
    "ModelNotFound",
    "NotFound",
    "Pending",
    "Position",
    "Prediction",
    "RateLimited",
    "Retry",
    "Sequence",
    "SequenceExists",
    "SequenceGone",
    "SequenceNotFound",
    "StateAt",
    "StateMoved",
    "StepConflict",
    "Stepped",
    "Stream",
    "Tensor",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedAnswer",
    "Unprocessable",
]
