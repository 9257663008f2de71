"""The bytes that the load generator sends. All requests of a run are equally long: numbers are padded with blanks."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Sequence
from typing import Any

from benchmarks.connection import body_of

API_KEY = "benchmark-key"
NUM_INPUTS = 32
"""Different inputs that the streams take turns at."""

FLOAT_BYTES = 4

Chunk = Sequence[Sequence[float]]
"""The steps of one call."""

_JSON_LENGTH = re.compile(rb"inference-header-content-length: (\d+)")


def inputs_of(seed: int, num_features: int) -> list[list[float]]:
    """`NUM_INPUTS` steps of `num_features` numbers with four decimals."""
    numbers = random.Random(seed)
    return [[round(numbers.uniform(-1, 1), 4) for _ in range(num_features)] for _ in range(NUM_INPUTS)]


def input_index(stream: int, step: int) -> int:
    """Which of the inputs a stream sends at a step: neighbours send different ones."""
    return (7 * stream + step) % NUM_INPUTS


class StepsDoor:
    """JSON to /v1/.../steps."""

    @staticmethod
    def render(steps: Chunk) -> bytes:
        rows = (",".join(f"{value:7.4f}" for value in values) for values in steps)
        return ("[" + ",".join(f"[{row}]" for row in rows) + "]").encode()

    @staticmethod
    def template(model: str, sequence_id: str, inputs: bytes, num_steps: int, *, first: bool) -> bytes:
        """What `fill` completes. Every inputs is as long as these. `first`: of the request that begins the sequence."""
        body = b'{"inputs":%s,"step":%8d,"start":true}'
        length = len(body % (b" " * len(inputs), 0))
        return _head(f"/v1/models/{model}/sequences/{sequence_id}/steps", length).replace(b"%", b"%%") + body

    @staticmethod
    def fill(template: bytes, inputs: bytes, step: int) -> bytes:
        return template % (inputs, step)

    @staticmethod
    def outputs(answer: bytes) -> Any:
        """Those of all steps of the answer, `(T, O)`."""
        return json.loads(body_of(answer)).get("outputs", [])  # the echo has none


class InferDoor:
    """Binary tensors to /v2/.../infer."""

    @staticmethod
    def render(steps: Chunk) -> bytes:
        return b"".join(struct.pack(f"<{len(values)}f", *values) for values in steps)

    @staticmethod
    def template(model: str, sequence_id: str, inputs: bytes, num_steps: int, *, first: bool) -> bytes:
        features = len(inputs) // FLOAT_BYTES // num_steps
        start = b"true" if first else b"false"
        document = (
            b'{"parameters":{"sequence_id":"%b","sequence_start":%b,"sequence_step":%%8d,"binary_data_output":true},'
            b'"inputs":[{"name":"x","shape":[1,%d,%d],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}'
        ) % (sequence_id.encode(), start, num_steps, features, len(inputs))
        length = len(document % 0)
        head = _head(f"/v2/models/{model}/infer", length + len(inputs), f"Inference-Header-Content-Length: {length}")
        return head.replace(b"%", b"%%") + document + b"%b"

    @staticmethod
    def fill(template: bytes, inputs: bytes, step: int) -> bytes:
        return template % (step, inputs)

    @staticmethod
    def outputs(answer: bytes) -> Any:
        body, length = body_of(answer), _JSON_LENGTH.search(answer)
        assert length is not None, "a binary answer says how much of it is JSON"
        (y,) = json.loads(body[: int(length[1])])["outputs"]
        _, steps, size = y["shape"]
        values = struct.unpack_from(f"<{steps * size}f", body, int(length[1]))
        return [list(values[n * size : (n + 1) * size]) for n in range(steps)]


DOORS: dict[str, type[StepsDoor] | type[InferDoor]] = {"http": StepsDoor, "infer": InferDoor}


def job_request(model: str, num_features: int, num_steps: int) -> bytes:
    """An offline job: one long sequence of which only the last output is wanted."""
    pool = inputs_of(1, num_features)
    rows = ",".join(str(pool[step % NUM_INPUTS]).replace(" ", "") for step in range(num_steps))
    body = f'{{"sequences":[{{"inputs":[{rows}]}}],"outputs":"last","return_state":false}}'.encode()
    return _head(f"/v1/models/{model}/predict", len(body)) + body


def _head(path: str, length: int, field: str = "Content-Type: application/json") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{field}\r\n"
        f"X-API-Key: {API_KEY}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()
