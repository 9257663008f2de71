"""What clients of the Open Inference Protocol send, field by field.

Fields that are not named here are ignored, since clients of other servers add their own.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Raw, Struct

from service.protocol.bodies import MAX_STEP, Step

Size = Annotated[int, Meta(ge=0, le=MAX_STEP)]
SequenceId = int | str
"""uint64 or string; 0 and the empty string are none."""

MAX_NUMBER = 2**64 - 1


class Parameters(Struct):
    sequence_id: SequenceId = 0
    sequence_ids: Annotated[list[SequenceId], Meta(min_length=1)] | None = None
    sequence_start: bool = False
    sequence_end: bool = False
    sequence_takeover: bool = False
    sequence_step: Step | None = None
    sequence_steps: list[Step] | None = None
    binary_data_output: bool = False
    timeout: Size | None = None
    """Microseconds."""


class InputParameters(Struct):
    binary_data_size: Size | None = None
    # Raw: it is refused whatever it is
    shared_memory_region: Raw = Raw()


class InputTensor(Struct):
    name: str
    shape: Annotated[list[Size], Meta(max_length=64)]
    datatype: str
    # Raw: how it is read depends on the datatype
    data: Raw = Raw()
    parameters: InputParameters | None = None


class OutputParameters(Struct):
    binary_data: bool | None = None
    classification: Raw = Raw()
    shared_memory_region: Raw = Raw()


class OutputTensor(Struct):
    name: str
    parameters: OutputParameters | None = None


class InferBody(Struct):
    inputs: list[InputTensor]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[OutputTensor] | None = None


class IndexBody(Struct):
    ready: bool = False


class LoadBody(Struct):
    parameters: dict[str, Raw] | None = None
