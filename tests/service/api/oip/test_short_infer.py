"""A real server takes plain requests by a short way: its verdicts and its bits are those of the long one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from tests.service.api.clients import LSTM, TOKENS
from tests.service.api.oip.calls import JSON_LENGTH
from tests.service.api.processes import serve

LONG_WAY = {"x-request-timeout-ms": "60000"}
"""A header that changes the meaning of a call sends it the long way."""
X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
_VARIES = re.compile(rb'"sequence_expires_at":"[^"]*"|"short"|"long"')


@pytest.fixture(scope="module")
def connection(repository: Path) -> Iterator[httpx.Client]:
    with serve(repository, CAROUSEL_MAX_STEPS="1000") as served, httpx.Client(base_url=served.address) as client:
        yield client


def call(client: httpx.Client, way: str, values: Any, model: str = LSTM, **fields: Any) -> tuple[int, bytes, str]:
    """Status, body without what must vary, and content type."""
    array = np.ascontiguousarray(values)
    datatype = "INT64" if array.dtype == np.int64 else "FP32"
    described = {
        "name": "x",
        "datatype": datatype,
        "shape": array.shape,
        "parameters": {"binary_data_size": array.nbytes},
    }
    parameters = {"sequence_id": way, "binary_data_output": True, **fields.pop("parameters", {})}
    head = orjson.dumps({"inputs": [described], "parameters": parameters, **fields})
    headers = {JSON_LENGTH: str(len(head)), **(LONG_WAY if way == "long" else {})}
    answer = client.post(f"/v2/models/{model}/infer", content=head + array.tobytes(), headers=headers)
    return answer.status_code, _VARIES.sub(b"", answer.content), answer.headers["content-type"]


def both(client: httpx.Client, values: Any, model: str = LSTM, **fields: Any) -> int:
    """The status, once both ways have given the same answer."""
    short, long = (call(client, way, values, model, **deep(fields)) for way in ("short", "long"))
    assert short == long
    return short[0]


def deep(fields: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = orjson.loads(orjson.dumps(fields))
    return copied


def test_both_ways_give_the_same_answers(connection: httpx.Client) -> None:
    at = 0
    assert both(connection, X[None, :1], parameters={"sequence_start": True}) == 200
    for steps in (1, 1, 2, 5, 1):
        at += 1 if not at else 0
        assert both(connection, X[None, at : at + steps], parameters={"sequence_step": at}, id="q") == 200
        at += steps
    last = X[None, at - 1 : at]
    assert both(connection, last, parameters={"sequence_step": at - 1}) == 200, "repeated"
    assert both(connection, last, parameters={"sequence_step": at + 9}) == 409
    assert both(connection, np.full((1, 1, 3), np.nan, np.float32)) == 400
    assert both(connection, X[None, :1, :2]) == 400
    assert both(connection, np.zeros((1, 1001, 3), np.float32)) == 413
    assert both(connection, X[None, :1], outputs=[{"name": "h_next", "parameters": {"binary_data": True}}]) == 200
    assert both(connection, X[None, :1], outputs=[{"name": "u"}]) == 400
    assert both(connection, X[None, :1], parameters={"sequence_step": at + 1, "sequence_end": True}) == 200
    assert both(connection, X[None, :1]) == 410


def test_who_asks_for_a_compressed_answer_gets_one(connection: httpx.Client) -> None:
    assert call(connection, "packed", X[None, :1], parameters={"sequence_start": True})[0] == 200
    described = {"name": "x", "datatype": "FP32", "shape": [1, 1, 3], "parameters": {"binary_data_size": 12}}
    parameters = {"sequence_id": "packed", "sequence_step": 1, "binary_data_output": True}
    head, url = orjson.dumps({"inputs": [described], "parameters": parameters}), f"/v2/models/{LSTM}/infer"
    sent = {JSON_LENGTH: str(len(head)), "accept-encoding": "gzip"}
    packed = connection.post(url, content=head + X[1:2].tobytes(), headers=sent)
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content[int(packed.headers[JSON_LENGTH]) :], "lengths are those of the inflated body"


def test_tokens_too(connection: httpx.Client) -> None:
    assert both(connection, np.array([[0]]), TOKENS, parameters={"sequence_start": True}) == 200
    assert both(connection, np.array([[1, 0]]), TOKENS) == 200
    assert both(connection, np.array([[99]]), TOKENS) == 400


def test_calls_of_both_kinds_share_a_connection(connection: httpx.Client) -> None:
    """What was seen of the headers of one address is not taken for those of another."""
    for _ in range(2):
        answer = connection.post(
            f"/v1/models/{LSTM}/sequences/mixed/steps", json={"inputs": [[1, 2, 3]], "start": True}
        )
        assert answer.status_code == 200
        octets = {"content-type": "application/octet-stream"}
        refused = connection.post(
            f"/v1/models/{LSTM}/sequences/mixed/steps", content=answer.request.content, headers=octets
        )
        assert refused.status_code == 400
        status, _, content_type = call(connection, "mixed", X[None, :1])
        assert (status, content_type) == (200, "application/octet-stream")


def test_without_a_key_there_is_no_short_way(repository: Path) -> None:
    keys = {"CAROUSEL_API_KEYS": "alice:alices-key"}
    with serve(repository, **keys) as served, httpx.Client(base_url=served.address) as client:
        client.headers["x-api-key"] = "alices-key"
        assert call(client, "mine", X[None, :1], parameters={"sequence_start": True})[0] == 200
        assert call(client, "mine", X[None, :1])[0] == 200
        client.headers["x-api-key"] = "somebody-elses"
        assert call(client, "mine", X[None, :1])[0] == 401
