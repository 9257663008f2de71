"""What callers send, field by field. `api/schemas.py` describes the same bodies to people."""

from __future__ import annotations

import re
from typing import Annotated, Generic, Literal, TypeVar

from msgspec import Meta, Raw, Struct

T = TypeVar("T")

MAX_STEP = 2**53 - 1
"""Largest integer that every JSON reader keeps exactly."""

MAX_START = 2**52
"""Largest step to begin at: the steps after it stay below MAX_STEP for longer than any server runs."""

MAX_STOPS = 16

# not . and ..: clients take them out of a path
SEQUENCE_ID = r"^(?!\.{1,2}\Z)[A-Za-z0-9._~-]{1,128}\Z"
SEQUENCE_ID_IN_WORDS = "1 to 128 of A-Z a-z 0-9 . _ ~ -, not . or .."

Outputs = Literal["all", "last", "none"]
Step = Annotated[int, Meta(ge=0, le=MAX_STEP)]
Start = Annotated[int, Meta(ge=0, le=MAX_START)]
SequenceId = Annotated[str, Meta(pattern=SEQUENCE_ID)]
StreamId = Annotated[str, Meta(max_length=128)] | Annotated[int, Meta(ge=-MAX_STEP, le=MAX_STEP)] | None
StopText = Annotated[str, Meta(min_length=1)]


class SequenceBody(Struct, forbid_unknown_fields=True):
    # Raw: how `inputs` and states are read depends on the model
    inputs: Raw
    initial_state: Raw = Raw()
    state_token: str | None = None


class PredictBody(Struct, forbid_unknown_fields=True):
    sequences: Annotated[list[SequenceBody], Meta(min_length=1)]
    outputs: Outputs = "all"
    return_state: bool = True


class CreateBody(Struct, forbid_unknown_fields=True):
    sequence_id: SequenceId | None = None
    initial_state: Raw = Raw()
    state_token: str | None = None
    ttl_seconds: Annotated[float, Meta(gt=0)] | None = None
    version: Annotated[int, Meta(ge=1, le=MAX_STEP)] | None = None


class StepsBody(Struct, forbid_unknown_fields=True):
    inputs: Raw
    step: Step | None = None
    outputs: Outputs = "all"
    return_state: bool = False
    commit: bool = True
    start: bool = False


class ReadStepsBody(Struct, Generic[T], forbid_unknown_fields=True):
    """`StepsBody` whose inputs are read in the same pass, by a decoder that knows what the model takes."""

    inputs: T
    step: Step | None = None
    outputs: Outputs = "all"
    return_state: bool = False
    commit: bool = True
    start: bool = False


class StreamBody(StepsBody, kw_only=True, forbid_unknown_fields=True):
    """One text frame of a stream: a call of `steps`, or the end of a sequence."""

    sequence_id: SequenceId
    inputs: Raw = Raw()
    delete: bool = False
    id: StreamId = None


class GenerateBody(Struct, forbid_unknown_fields=True):
    inputs: Raw
    steps: Annotated[int, Meta(ge=1, le=MAX_STEP)]
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_k: Annotated[int, Meta(ge=1, le=MAX_STEP)] | None = None
    seed: Step | None = None
    stop: StopText | Annotated[list[StopText | Step], Meta(max_length=MAX_STOPS)] | None = None
    future_inputs: Raw = Raw()
    outputs: Outputs | None = None
    return_state: bool = True
    commit: bool = True
    """Of a sequence: does it move? A rollout without one has nothing to commit."""


class FreeGenerateBody(GenerateBody, forbid_unknown_fields=True):
    """One of `initial_state` and `state_token`, or neither: zeros."""

    initial_state: Raw = Raw()
    state_token: str | None = None


class SequenceGenerateBody(GenerateBody, forbid_unknown_fields=True):
    step: Step | None = None


class StateBody(Struct, forbid_unknown_fields=True):
    """One of `state`, which needs a `step`, and `state_token`, which has one."""

    state: Raw = Raw()
    state_token: str | None = None
    step: Start | None = None


class ForkBody(Struct, forbid_unknown_fields=True):
    sequence_id: SequenceId | None = None


def is_sequence_id(text: str) -> bool:
    return re.match(SEQUENCE_ID, text) is not None
