"""The answers of the Open Inference Protocol as JSON Schema.

Written from the text of kserve/open-inference-protocol, `specification/protocol/inference_rest.md`, and of Triton's
extensions of it, `docs/protocol/extension_*.md`: required fields and types are theirs. Further fields are allowed
there, so they are allowed here.
"""

from __future__ import annotations

from typing import Any

import jsonschema

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
COUNT = {"type": "integer", "minimum": 0}
STRINGS = {"type": "array", "items": STRING}
PARAMETERS = {"type": "object"}
DATATYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]
DATATYPE = {"enum": [*DATATYPES, "BYTES"]}


def record(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


ERROR = record({"error": {"type": "string", "minLength": 1}})
SERVER = record({"name": STRING, "version": STRING, "extensions": STRINGS})
_TENSOR = record({"name": STRING, "datatype": DATATYPE, "shape": array({"type": "integer", "minimum": -1})})
MODEL = record(
    {"name": STRING, "platform": STRING, "inputs": array(_TENSOR), "outputs": array(_TENSOR)}, versions=STRINGS
)
_DATA = array({"type": ["number", "string", "boolean", "array"]})
_NAMED = {"name": STRING, "datatype": DATATYPE, "shape": array(COUNT)}
_JSON_OUTPUT = record({**_NAMED, "data": _DATA}, parameters=PARAMETERS)
_BINARY_OUTPUT = {
    **record({**_NAMED, "parameters": record({"binary_data_size": COUNT})}),
    "not": {"required": ["data"]},
}
INFER = record(
    {"model_name": STRING, "outputs": array({"oneOf": [_JSON_OUTPUT, _BINARY_OUTPUT]})},
    model_version=STRING,
    id=STRING,
    parameters=PARAMETERS,
)
_CONFIG_TENSOR = record({"name": STRING, "data_type": {"type": "string", "pattern": "^TYPE_"}, "dims": array(INTEGER)})
_STATE = record(
    {
        "input_name": STRING,
        "output_name": STRING,
        "data_type": {"type": "string", "pattern": "^TYPE_"},
        "dims": array(INTEGER),
    }
)
CONFIG = record(
    {
        "name": STRING,
        "platform": STRING,
        "max_batch_size": COUNT,
        "input": array(_CONFIG_TENSOR),
        "output": array(_CONFIG_TENSOR),
    },
    sequence_batching=record({"max_sequence_idle_microseconds": COUNT, "state": array(_STATE)}),
)

_DURATION = record({"count": COUNT, "ns": COUNT})
_COMPUTE = dict.fromkeys(("compute_input", "compute_infer", "compute_output"), _DURATION)
_INFERENCE = dict.fromkeys(("success", "fail", "queue", "cache_hit", "cache_miss"), _DURATION)
STATISTICS = record(
    {
        "model_stats": array(
            record(
                {
                    "name": STRING,
                    "version": STRING,
                    "last_inference": COUNT,
                    "inference_count": COUNT,
                    "execution_count": COUNT,
                    "inference_stats": record({**_INFERENCE, **_COMPUTE}),
                    "batch_stats": array(record({"batch_size": COUNT, **_COMPUTE})),
                }
            )
        )
    }
)
STATES = ["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
INDEX = array(record({"name": STRING, "version": STRING, "state": {"enum": STATES}, "reason": STRING}))


def check(schema: dict[str, Any], document: Any) -> Any:
    """The document, once it fits."""
    jsonschema.Draft202012Validator(schema).validate(document)
    return document
