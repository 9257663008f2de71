"""The bytes that the load generator sends. All requests of a run are equally long: numbers are padded with blanks."""

from __future__ import annotations

import random
from collections.abc import Sequence

API_KEY = "benchmark-key"
NUM_INPUTS = 32
"""Different inputs that the streams take turns at."""


def inputs_of(seed: int, num_features: int) -> list[list[float]]:
    """`NUM_INPUTS` steps of `num_features` numbers with four decimals."""
    numbers = random.Random(seed)
    return [[round(numbers.uniform(-1, 1), 4) for _ in range(num_features)] for _ in range(NUM_INPUTS)]


def input_index(stream: int, step: int) -> int:
    """Which of the inputs a stream sends at a step: neighbours send different ones."""
    return (7 * stream + step) % NUM_INPUTS


def render_inputs(values: Sequence[float]) -> bytes:
    return ("[[" + ",".join(f"{value:7.4f}" for value in values) + "]]").encode()


def steps_request(model: str, sequence_id: str, inputs_length: int) -> bytes:
    """A template for `template % (inputs, step)`."""
    body = b'{"inputs":%s,"step":%8d,"start":true}'
    length = len(body % (b" " * inputs_length, 0))
    return _head(f"/v1/models/{model}/sequences/{sequence_id}/steps", length).replace(b"%", b"%%") + body


def job_request(model: str, num_features: int, num_steps: int) -> bytes:
    """An offline job: one long sequence of which only the last output is wanted."""
    pool = inputs_of(1, num_features)
    rows = ",".join(str(pool[step % NUM_INPUTS]).replace(" ", "") for step in range(num_steps))
    body = f'{{"sequences":[{{"inputs":[{rows}]}}],"outputs":"last","return_state":false}}'.encode()
    return _head(f"/v1/models/{model}/predict", len(body)) + body


def _head(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"X-API-Key: {API_KEY}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()
