"""Whatever is sent to /v2, the answer is the protocol's: never a 500, never an error without its text."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.api.clients import BIDIR, BROKEN, LSTM, SUM, TOKENS
from tests.service.api.oip.calls import JSON_LENGTH
from tests.service.api.oip.schema import ERROR, check
from tests.service.api.processes import Served, serve

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 7, 2**31, 2**53, 2**63, 2**64 - 1, 2**64, 10**40]),
    st.floats(),
    st.sampled_from(
        ["", "x", "h", "c", "y", "h_next", "FP32", "INT64", "BYTES", "FP16", "s-1", "é", "\ud800", "%s", "a" * 300]
    ),
    st.just([]),
    st.just({}),
    st.just([[[1, 2, 3]]]),
    st.just([1, 2, 3]),
    st.just([[]]),
)
KEYS = ["inputs", "outputs", "parameters", "id", "name", "shape", "datatype", "data", "ready", "more"]
PARAMETERS = ["sequence_id", "sequence_ids", "sequence_start", "sequence_end", "sequence_takeover", "sequence_step"]
PARAMETERS += ["sequence_steps", "binary_data_output", "binary_data", "binary_data_size", "timeout", "priority"]
NESTED = st.recursive(ODD, lambda inner: st.dictionaries(st.sampled_from(KEYS + PARAMETERS), inner, max_size=4))


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 1, 3], **fields}


GOOD = st.sampled_from(
    [
        {"inputs": [tensor(data=[1, 2, 3])]},
        {"inputs": [tensor(data=[[[1, 2, 3]]])], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
        {"inputs": [tensor(parameters={"binary_data_size": 12})], "parameters": {"binary_data_output": True}},
        {
            "inputs": [tensor(parameters={"binary_data_size": 12})],
            "parameters": {"sequence_id": 1, "sequence_start": True},
        },
        {"inputs": [tensor(parameters={"binary_data_size": 12})], "parameters": {"sequence_id": 1, "sequence_step": 1}},
        {
            "inputs": [tensor(shape=[2, 1, 3], data=[0] * 6)],
            "parameters": {"sequence_ids": ["a", 1], "sequence_start": True},
        },
        {"inputs": [tensor(datatype="INT64", shape=[1, 2], data=[0, 1])]},
        {"inputs": [tensor(datatype="BYTES", shape=[1, 2], data=["a", "b"])]},
        {
            "inputs": [
                tensor(data=[1, 2, 3]),
                tensor(name="h", shape=[1, 2, 8], data=[0] * 16),
                tensor(name="c", shape=[1, 2, 8], data=[0] * 16),
            ]
        },
        {"ready": True},
        {"parameters": {"unload_dependents": True}},
        {},
    ]
)


def copied(value: Any) -> Any:
    """What is drawn is shared, and must not be written into."""
    return json.loads(json.dumps(value))


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """A good one, with some of it replaced, or anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(NESTED)
    document = copied(draw(GOOD))
    for _ in range(draw(st.integers(0, 2))):
        _replace(draw, document)
    return document


def _replace(draw: st.DrawFn, place: Any) -> None:
    while isinstance(place, dict | list) and place:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
            if draw(st.integers(0, 4)) == 0 and isinstance(place, dict):
                place[draw(st.sampled_from(PARAMETERS))] = copied(draw(ODD))
            else:
                place[key] = copied(draw(NESTED))
            return
        place = place[key]


MODELS = st.sampled_from([LSTM] * 6 + [SUM, TOKENS, BIDIR, BROKEN, "nobody", "%2e%2e", "a b", "é"])
VERSIONS = st.sampled_from(["", "/versions/1", "/versions/2", "/versions/x", "/versions/", "/versions/" + "9" * 400])
ADDRESSES = st.one_of(
    st.tuples(
        MODELS,
        VERSIONS,
        st.sampled_from(["/infer"] * 8 + ["", "/ready", "/config", "/stats", "/generate", "/trace/setting"]),
    ).map(lambda parts: "models/" + "".join(parts)),
    st.sampled_from(
        ["", "health/live", "health/ready", "models/stats", "repository/index", "logging", "nothing", "models/"]
    ),
    st.tuples(MODELS, st.sampled_from(["/load", "/unload", "/other"])).map(
        lambda parts: "repository/models/" + "".join(parts)
    ),
)
METHODS = st.sampled_from(["POST"] * 12 + ["GET", "GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
DATA = st.one_of(st.just(np.ones(3, np.float32).tobytes()), st.binary(max_size=40))
LENGTHS = st.sampled_from([None, "right", "right", "right", "0", "-1", "x", "1", "99999", "1" * 30])
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "content-encoding", "x-request-timeout-ms", "accept"]),
    st.sampled_from(
        ["application/json", "application/octet-stream", "text/plain", "gzip", "br", "identity", "1", "-1", "x"]
    ),
    max_size=1,
)


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Served]:
    limits = {"CAROUSEL_MAX_STEPS": "1000", "CAROUSEL_MAX_BATCH": "8", "CAROUSEL_MAX_SEQUENCES": "50"}
    with serve(repository, **limits) as served:
        yield served


@pytest.fixture(scope="module")
def browser(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.address) as client:
        yield client


def told(answer: httpx.Response) -> None:
    assert answer.status_code < 500 or answer.status_code in (501, 503, 504), answer.text
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        assert answer.headers["content-type"] == "application/json", answer.text
        check(ERROR, answer.json())


@settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(METHODS, ADDRESSES, documents(), DATA, LENGTHS, HEADERS)
def test_no_answer_is_another_than_the_protocols(
    browser: httpx.Client,
    method: str,
    address: str,
    document: Any,
    data: bytes,
    length: str | None,
    headers: dict[str, str],
) -> None:
    head = json.dumps(document).encode()
    sent = headers if length is None else {**headers, JSON_LENGTH: str(len(head)) if length == "right" else length}
    body = head + data if length not in (None, "0") else data if length == "0" else head
    told(browser.request(method, f"/v2/{address}", content=body, headers=sent))


def test_flipped_bits_and_cuts_are_told_too(browser: httpx.Client) -> None:
    rng = random.Random(0)
    head = json.dumps(
        {"inputs": [tensor(parameters={"binary_data_size": 12})], "parameters": {"sequence_id": 9}}
    ).encode()
    good = head + np.ones(3, np.float32).tobytes()
    for _ in range(300):
        body = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        cut = rng.choice([len(body), rng.randrange(len(body) + 1)])
        told(browser.post(f"/v2/models/{LSTM}/infer", content=bytes(body[:cut]), headers={JSON_LENGTH: str(len(head))}))


def test_the_server_is_none_the_worse(browser: httpx.Client) -> None:
    assert browser.get("/v2/health/ready").status_code == 200
    answer = browser.post(f"/v2/models/{SUM}/infer", json={"inputs": [tensor(shape=[1, 1, 2], data=[1, 2])]})
    assert answer.json()["outputs"][0]["data"] == [1, 2]
