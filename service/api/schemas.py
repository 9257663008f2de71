"""The contract's bodies, as OpenAPI shows them. `protocol/bodies.py` is what reads them; tests compare the two."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, StrictInt
from pydantic.config import JsonDict

from service.protocol.bodies import MAX_START, MAX_STEP, MAX_STOPS, SEQUENCE_ID, SEQUENCE_ID_IN_WORDS, is_sequence_id

Outputs = Literal["all", "last", "none"]
Step = Annotated[StrictInt, Field(ge=0, le=MAX_STEP)]
Start = Annotated[StrictInt, Field(ge=0, le=MAX_START)]
ID_SCHEMA: JsonDict = {"pattern": SEQUENCE_ID.replace(r"\Z", "$")}
"""Not as Field's own `pattern`: pydantic's expressions know no look-ahead."""


def _check_id(text: str) -> str:
    if not is_sequence_id(text):
        raise ValueError(f"expected {SEQUENCE_ID_IN_WORDS}")
    return text


SequenceId = Annotated[str, AfterValidator(_check_id), Field(json_schema_extra=ID_SCHEMA)]
State = Annotated[
    dict[str, JsonValue],
    Field(description='A tensor for each state of the model: `{"h": [L][H], "c": [L][H]}` for an LSTM.'),
]
Inputs = Annotated[
    list[JsonValue],
    Field(description="`[T][F]` finite float32 numbers, or `[T]` token ids for token models; T >= 1."),
]
StopText = Annotated[str, Field(min_length=1)]
StateToken = Annotated[
    str | None,
    Field(description="A state that this server sealed, for the same model version and tenant, in place of it."),
]
Matrix = list[Any]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SequenceInput(_Request):
    inputs: Inputs
    initial_state: State | None = Field(None, description="State before the first step; zeros without.")
    state_token: StateToken = None


class PredictRequest(_Request):
    sequences: list[SequenceInput] = Field(min_length=1)
    outputs: Outputs = Field("all", description="Outputs of all steps, of the last, or an empty list.")
    return_state: bool = Field(True, description="Answer `final_state` and `state_token` too.")


class CreateRequest(_Request):
    sequence_id: SequenceId | None = Field(None, description="Made up by the server without.")
    initial_state: State | None = None
    state_token: StateToken = None
    ttl_seconds: Annotated[FiniteFloat, Field(gt=0)] | None = Field(
        None, description="Lease; each call renews it. The server's own without."
    )
    version: Annotated[StrictInt, Field(ge=1, le=MAX_STEP)] | None = None


class StepsRequest(_Request):
    inputs: Inputs
    step: Step | None = Field(None, description="Steps that the caller believes are done; no check without.")
    outputs: Outputs = "all"
    return_state: bool = Field(False, description="Answer `final_state` too.")
    commit: bool = Field(True, description="false: score these steps and leave the state as it was.")
    start: bool = Field(False, description="Create the sequence if it is not there.")


class GenerateRequest(_Request):
    """What both ways to generate have in common."""

    inputs: Annotated[
        Inputs | str, Field(description="What the model reads first, as in `predict`; of token models also a text.")
    ]
    steps: Annotated[StrictInt, Field(ge=1, le=MAX_STEP, description="How many to generate.")]
    temperature: Annotated[FiniteFloat, Field(ge=0)] | None = Field(
        None,
        description="Token models: 0 takes the likeliest token, 1 (without) the model's own odds. "
        "This, `top_k` and `seed` mean nothing to others.",
    )
    top_k: Annotated[StrictInt, Field(ge=1, le=MAX_STEP)] | None = Field(
        None, description="Draw from the likeliest so many tokens only."
    )
    seed: Step | None = Field(None, description="Same seed, same text. Chosen by the server without, and answered.")
    stop: StopText | Annotated[list[StopText | Step], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="Token models: end after this text, or any of these texts and tokens; it is part of the text."
    )
    future_inputs: dict[str, list[FiniteFloat]] | None = Field(
        None,
        description="Forecasters: features that are known ahead, by name, `steps` numbers each. Without them, each "
        "goes on as the model's card says in `feedback`.",
    )
    outputs: Outputs | None = Field(
        None,
        description="What the model put out just before each generated step, of all steps or the last; without: `none` "
        "for token models, `all` for forecasters.",
    )
    return_state: bool = Field(True, description="Answer `final_state`, and without a sequence `state_token`, too.")


class FreeGenerateRequest(GenerateRequest):
    initial_state: State | None = Field(None, description="State before the first input; zeros without.")
    state_token: StateToken = None
    commit: bool = Field(True, description="Means nothing here: there is no sequence that could move.")


class SequenceGenerateRequest(GenerateRequest):
    step: Step | None = Field(None, description="Steps that the caller believes are done; no check without.")
    commit: bool = Field(
        True, description="The sequence stands after inputs and generated steps at the end; false: it stays."
    )


class StateRequest(_Request):
    state: State | None = Field(None, description="This or `state_token`.")
    state_token: StateToken = None
    step: Start | None = Field(None, description="Steps that it has behind it; of a token its own without.")


class ForkRequest(_Request):
    sequence_id: SequenceId | None = None


class SequenceOutput(BaseModel):
    outputs: Matrix = Field(description="`[T][O]`, `[1][O]` or `[]`, as `outputs` asked.")
    steps: int
    final_state: dict[str, Matrix] | None = Field(None, description="Left out with `return_state: false`.")
    state_token: str | None = Field(None, description="`final_state`, sealed: to go on from, here or at a replica.")


class PredictAnswer(BaseModel):
    model: str
    version: int
    sequences: list[SequenceOutput]


class Position(BaseModel):
    sequence_id: str
    model: str
    version: int
    step: int = Field(description="Steps done.")
    expires_at: str


class SequenceInfo(Position):
    created_at: str
    last_used_at: str


class SequencePage(BaseModel):
    sequences: list[Position]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last.")


class StepsAnswer(BaseModel):
    sequence_id: str
    step: int = Field(description="Where these steps lead to.")
    outputs: Matrix
    expires_at: str
    replayed: bool
    final_state: dict[str, Matrix] | None = None


class GenerateAnswer(BaseModel):
    """Of token models `tokens`, `text` and `seed`; of forecasters `values`."""

    model: str
    version: int
    step: int = Field(description="Steps that `final_state` has behind it: inputs and generated ones.")
    steps: int = Field(description="Generated ones.")
    finish_reason: Literal["steps", "stop"]
    tokens: list[int] | None = None
    text: str | None = None
    seed: int | None = None
    values: Matrix | None = Field(None, description="`[steps][F]`: what the model was fed of its own.")
    outputs: Matrix = Field(description="`[steps][O]`, `[1][O]` or `[]`: what came out just before each of them.")
    final_state: dict[str, Matrix] | None = None


class FreeGenerateAnswer(GenerateAnswer):
    state_token: str | None = Field(None, description="`final_state` and `step`, sealed: to go on from.")


class SequenceGenerateAnswer(GenerateAnswer):
    sequence_id: str
    expires_at: str
    replayed: bool


class StateAnswer(BaseModel):
    sequence_id: str
    step: int
    expires_at: str
    state: dict[str, Matrix]
    state_token: str = Field(description="`state` and `step`, sealed.")


class ModelLine(BaseModel):
    name: str
    version: int = Field(description="The newest that is ready.")
    versions: list[int]
    task: str | None
    cell: str | None
    ready: bool
    description: str
    reason: str | None = Field(None, description="Why no version is ready.")


class ModelList(BaseModel):
    models: list[ModelLine]


class Tensor(BaseModel):
    name: str
    dtype: str
    shape: list[str | int]
    unit: str | None = None
    kind: str | None = None
    labels: list[str] | None = None
    vocabulary: list[str] | None = None
    token_counts: list[int] | None = Field(None, description="Ids are below these, one for each place of a step.")
    required: bool = Field(False, description="Of a state: a sequence begins with it, not from zeros.")


class ModelCard(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    ready: bool
    task: str
    description: str
    cell: str
    layers: int | None = Field(description="None where nobody told, as of a model that was not trained here.")
    hidden_size: int | None
    bidirectional: bool
    parameters: int
    streaming: bool
    inputs: list[Tensor]
    outputs: list[Tensor]
    states: list[Tensor]
    metrics: list[dict[str, Any]]
    data: dict[str, Any] | None
    provider: str = Field(description="onnxruntime's execution provider really in use.")
    fingerprint: str = Field(description="SHA-256 of the ONNX file.")
    limits: dict[str, float]
    feedback: list[dict[str, Any]] | None = Field(
        None, description="Where each input feature comes from in `generate`; null: the model has none."
    )


class Health(BaseModel):
    status: str


class Problem(BaseModel):
    """RFC 9457; further fields are facts about this problem, `expected` and `received` among them."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
