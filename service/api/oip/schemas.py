"""The bodies of the Open Inference Protocol, as OpenAPI shows them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, RootModel

Parameters = dict[str, Any]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class OipError(_Open):
    """`code` and the facts about this error stand beside it, `expected` and `received` among them."""

    error: str
    code: str


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 is any size; the batch comes first.")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata] = Field(description="The model's input, then its states, which may be left out.")
    outputs: list[TensorMetadata]


class ModelConfiguration(_Open):
    name: str
    platform: str
    max_batch_size: int
    input: list[dict[str, Any]]
    output: list[dict[str, Any]]
    sequence_batching: dict[str, Any] | None = Field(None, description="Left out for models that cannot be stepped.")


class InferInput(_Open):
    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = Field(None, description="`binary_data_size`: bytes of the tensor after the JSON.")
    data: list[Any] | None = Field(None, description="Nested or flat, row-major.")


class InferAsk(_Open):
    name: str
    parameters: Parameters | None = Field(None, description="`binary_data`: answer it as bytes after the JSON.")


class InferRequest(_Open):
    inputs: list[InferInput]
    id: str | None = Field(None, description="Comes back with the answer.")
    parameters: Parameters | None = Field(
        None,
        description="`sequence_id` (0 or empty: none), `sequence_start`, `sequence_end`, `sequence_takeover`, "
        "`sequence_step`; `sequence_ids` and `sequence_steps`, one a row; `binary_data_output`; `timeout` in us.",
    )
    outputs: list[InferAsk] | None = Field(
        None, description="Without: the output, and of calls without a sequence the final states too."
    )


class InferOutput(_Open):
    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: list[Any] | None = None


class InferAnswer(_Open):
    model_name: str
    model_version: str
    id: str | None = None
    parameters: Parameters | None = Field(None, description="Of a sequence: its id, its step, and until when it lives.")
    outputs: list[InferOutput]


class ModelStatistics(BaseModel):
    model_stats: list[dict[str, Any]]


class IndexRequest(_Open):
    ready: bool = Field(False, description="Only versions that are ready.")


class IndexEntry(BaseModel):
    name: str
    version: str
    state: str = Field(description="LOADING, READY, UNLOADING or UNAVAILABLE.")
    reason: str


class Index(RootModel[list[IndexEntry]]):
    """Every version, by name and version."""


class LoadRequest(_Open):
    parameters: Parameters | None = Field(None, description="`unload_dependents` may stand here and means nothing.")
