"""What a model looks like, read from the ONNX file itself.

The exporter writes one JSON document, the manifest, under the metadata key `carousel` of the ONNX file; nothing else
is needed to serve it. This module describes that document. It does not know onnxruntime, disks or HTTP.

Array legend: B rows, T steps, F features, H hidden, L layers.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import ModelInvalid

METADATA_KEY = "carousel"
BATCH, TIME = "batch", "time"

Axis = Literal["batch", "time"] | int
Shape = tuple[Axis, ...]


class _Part(BaseModel):
    # "forbid": a manifest with a field this server does not understand must not be served half understood.
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Part):
    """An input or output that has one value per step, for example `("batch", "time", 12)` float32."""

    name: str
    dtype: Literal["float32", "int64"]
    shape: Shape
    description: str = ""
    unit: str | None = None
    kind: Literal["value", "probability", "logit", "token"] = "value"
    labels: tuple[str, ...] | None = None
    """Names of the places of the last axis: features, classes or horizons."""
    vocabulary: tuple[str, ...] | None = None
    """Token i stands for the text `vocabulary[i]`."""
    token_counts: tuple[int, ...] | None = None
    """How many tokens there are where no vocabulary says so: one number for each place of a step."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.token_counts and len(self.token_counts) != np.prod(self.step_shape):
            raise ValueError(f"tensor {self.name!r}: {len(self.token_counts)} token counts do not fit {self.shape}")
        if self.shape[:2] != (BATCH, TIME):
            raise ValueError(f"tensor {self.name!r}: expected a shape that begins with batch, time; got {self.shape}")
        if not all(isinstance(axis, int) and axis > 0 for axis in self.shape[2:]):
            raise ValueError(
                f"tensor {self.name!r}: axes after batch and time must be positive sizes; got {self.shape}"
            )
        return self

    @cached_property
    def step_shape(self) -> tuple[int, ...]:
        """Shape of one step: `(F,)`, or `()` for tokens."""
        return tuple(axis for axis in self.shape if isinstance(axis, int))

    @cached_property
    def token_ids(self) -> dict[str, int]:
        """Text of a token -> its id."""
        return {text: token for token, text in enumerate(self.vocabulary or ())}

    @cached_property
    def token_limits(self) -> NDArray[np.int64]:
        """Tokens are below these, of the shape of one step or ()."""
        if self.vocabulary:
            return np.array(len(self.vocabulary))
        if self.token_counts:
            return np.array(self.token_counts).reshape(self.step_shape)
        return np.array(np.iinfo(np.int64).max)

    @cached_property
    def step_bytes(self) -> int:
        """Bytes of one step."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.step_shape))


class StateSpec(_Part):
    """One recurrent tensor: the graph input that takes it and the graph output that gives its next value."""

    name: str
    input: str
    output: str
    dtype: Literal["float32"] = "float32"
    shape: Shape
    """As the graph has it, for example `(L, "batch", H)`."""
    required: bool = False
    """A sequence cannot begin from zeros: it is given when it begins, as an embedding of a speaker is."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shape.count(BATCH) != 1 or TIME in self.shape:
            raise ValueError(f"state {self.name!r}: expected one batch axis and no time axis; got {self.shape}")
        return self

    @cached_property
    def batch_axis(self) -> int:
        return self.shape.index(BATCH)

    @cached_property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one sequence's state, without the batch axis: `(L, H)`."""
        return tuple(axis for axis in self.shape if isinstance(axis, int))

    def batch_shape(self, rows: int) -> tuple[int, ...]:
        """Shape of the states of `rows` sequences as the graph has it: `(L, B, H)`."""
        return tuple(axis if isinstance(axis, int) else rows for axis in self.shape)

    @cached_property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.row_shape))


class FromOutput(_Part):
    """The feature is what the model put out for it: `places[n]` of the output stands n + 1 steps ahead of its step.

    With several places, so many steps are fed in one piece before the next output is asked.
    """

    kind: Literal["output"]
    places: tuple[int, ...] = Field(min_length=1)


class Held(_Part):
    """The feature stays what it was last, unless the caller says what it will be."""

    kind: Literal["hold"]


class Given(_Part):
    """Only the caller knows what the feature will be."""

    kind: Literal["given"]


class Cycle(_Part):
    """The feature is one half of a point that goes round a circle: the sine or cosine of an hour, a day of the year."""

    kind: Literal["sine", "cosine"]
    period_steps: float = Field(gt=0)
    other: int = Field(ge=0)
    """The feature that is the other half."""


Source = Annotated[FromOutput | Held | Given | Cycle, Field(discriminator="kind")]
"""Where an input feature comes from while the model feeds itself."""


class Reference(_Part):
    """A published or recomputed figure that a metric stands beside."""

    name: str
    value: float
    source: str = ""


class Metric(_Part):
    """A figure measured on a data split, in `unit`."""

    name: str
    value: float
    split: str = "test"
    unit: str | None = None
    better: Literal["higher", "lower"]
    references: tuple[Reference, ...] = ()


class DataSource(_Part):
    name: str
    source: str
    licence: str


class Change(_Part):
    """A figure of the model as trained, in fp32, and of the file as it is."""

    before: float
    after: float


class StepChange(Change):
    """Seconds of a run of one step, the median of many on one thread of the machine that exported."""

    rows: int = Field(ge=1)


class MetricChange(Change):
    name: str
    split: str = "test"
    unit: str | None = None
    better: Literal["higher", "lower"]


class Quantization(_Part):
    """What smaller numbers brought and cost."""

    method: str
    size_bytes: Change
    """Of the file, without this very object."""
    step_seconds: tuple[StepChange, ...]
    metric: MetricChange | None = None


class Origin(_Part):
    """Where a model is from that was not trained here."""

    file: str = ""
    sha256: str = ""
    """Of the file as it came."""
    producer: str = ""
    source: str = ""
    licence: str = ""


class ModelSpec(_Part):
    """The manifest: everything the service knows of a model."""

    format: Literal[1]
    name: str
    task: str
    description: str = ""
    cell: str
    layers: int | None = Field(None, ge=1)
    hidden_size: int | None = Field(None, ge=1)
    """Both are None where nobody told."""
    bidirectional: bool = False
    parameters: int = Field(ge=0)
    streaming: bool
    """May a sequence be cut into chunks? False for bidirectional models."""
    batch_invariant: bool = True
    """Is a row's result the same, bit for bit, whatever rows run beside it and however its steps are cut into runs?"""
    max_batch_size: int | None = Field(None, ge=1)
    """Most rows that may run together; None leaves it to the server."""
    max_chunk_size: int | None = Field(None, ge=1)
    """Most steps of a row in one run, where it may be cut; None leaves it to the server. With one row and one step a
    run, a model that is not batch invariant is exact all the same."""
    quantization: Quantization | None = None
    inputs: tuple[TensorSpec, ...] = Field(min_length=1, max_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1, max_length=1)
    states: tuple[StateSpec, ...]
    feedback: tuple[Source, ...] | None = None
    """One for each input feature, for models of numbers that can go on by themselves."""
    metrics: tuple[Metric, ...] = ()
    data: DataSource | None = None
    origin: Origin | None = None
    created_at: str
    source_commit: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [state.name for state in self.states]
        if len(set(names)) != len(names):
            raise ValueError(f"state names must differ; got {names}")
        if self.streaming and not names:
            raise ValueError("a model without states cannot stream")
        if self.feedback is not None:
            _check_feedback(self.feedback, self.input, self.output)
        return self

    @property
    def samples(self) -> bool:
        """Can the next token be drawn from the output?"""
        places = self.output.step_shape
        size = len(self.input.vocabulary) if self.input.vocabulary else (self.input.token_counts or (None,))[0]
        scores = self.output.kind in ("logit", "probability") and len(places) == 1
        return self.input.dtype == "int64" and not self.input.step_shape and scores and size in (None, places[0])

    @property
    def feeds_itself(self) -> bool:
        """Can it go on without inputs?"""
        return self.streaming and (self.samples or self.feedback is not None)

    @property
    def input(self) -> TensorSpec:
        return self.inputs[0]

    @property
    def output(self) -> TensorSpec:
        return self.outputs[0]

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of one sequence's state."""
        return sum(state.row_bytes for state in self.states)


def _check_feedback(feedback: tuple[Source, ...], x: TensorSpec, y: TensorSpec) -> None:
    if x.dtype != "float32" or x.step_shape != (len(feedback),) or len(y.step_shape) != 1:
        raise ValueError(f"feedback: expected one source for each of the {x.step_shape} features, got {len(feedback)}")
    fed = [source.places for source in feedback if isinstance(source, FromOutput)]
    if len({len(places) for places in fed}) != 1:
        raise ValueError("feedback: expected features that come from the output, all for as many steps ahead")
    if any(not 0 <= place < y.step_shape[0] for places in fed for place in places):
        raise ValueError(f"feedback: the output has places 0 to {y.step_shape[0] - 1}; got {fed}")
    for feature, source in enumerate(feedback):
        if not isinstance(source, Cycle):
            continue
        half = feedback[source.other] if source.other < len(feedback) else None
        turned = isinstance(half, Cycle) and half.kind != source.kind and half.period_steps == source.period_steps
        if not turned or half.other != feature:  # type: ignore[union-attr]
            raise ValueError(f"feedback: feature {feature} and {source.other} are not the two halves of a cycle")


def parse_manifest(text: str | None) -> ModelSpec:
    """Read the manifest of an ONNX file.

    Raises ModelInvalid when it is missing, or does not fit this server.
    """
    if text is None:
        raise ModelInvalid(
            f"The ONNX file has no {METADATA_KEY!r} metadata, so its states are unknown. "
            "Publish it with `python -m export CHECKPOINT REPOSITORY`, or `python -m export adopt FILE.onnx`."
        )
    try:
        return ModelSpec.model_validate_json(text)
    except ValidationError as error:
        raise ModelInvalid(
            f"The {METADATA_KEY!r} metadata does not fit this server: {_first_problem(error)}"
        ) from error


def _first_problem(error: ValidationError) -> str:
    first: dict[str, Any] = dict(error.errors(include_url=False)[0])
    place = ".".join(str(part) for part in first["loc"]) or "document"
    return f"{place}: {first['msg']} ({error.error_count()} in all)"
