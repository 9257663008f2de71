"""The short reading of a plain request: what it takes means the same to the full one, and its answer is the same."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.request import Result
from service.protocol.arrays import Array
from service.protocol.oip.answers import encode_answer
from service.protocol.oip.bodies import InferBody
from service.protocol.oip.plain import PlainInfer, open_plain
from tests.service.protocol.oip.test_requests import MODEL, NUMPY, TOKENS, read

PLAIN = PlainInfer("m%", 3, MODEL)
X = np.array([[[1, 2, 3], [4, 5, 6]]], np.float32)
GOOD: dict[str, Any] = {
    "parameters": {"sequence_id": "s-1", "sequence_step": 4, "binary_data_output": True},
    "inputs": [{"name": "x", "shape": [1, 2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}}],
}


def take(
    document: Any, data: bytes = X.tobytes(), plain: PlainInfer = PLAIN, max_steps: int = 1000
) -> tuple[InferBody, Array, bytes] | None:
    """The fields, the inputs and the body, if the request is plain."""
    head = json.dumps(document).encode()
    body = head + data
    opened = open_plain(body, str(len(head)).encode())
    inputs = None if opened is None else plain.read(opened[0], body, opened[1], max_steps)
    return None if opened is None or inputs is None else (opened[0], inputs, body)


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    document = deepcopy(GOOD)
    place = document
    for part in path[:-1]:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    place[path[-1]] = value
    return document


def test_the_plain_request_is_taken_without_a_copy() -> None:
    taken = take(GOOD, max_steps=2)
    assert taken is not None
    fields, inputs, body = taken
    assert fields.parameters is not None
    assert (fields.parameters.sequence_id, fields.parameters.sequence_step) == ("s-1", 4)
    assert inputs.tolist() == X[0].tolist()
    assert inputs.base is body


NOT_PLAIN: list[tuple[list[Any], Any]] = [
    (["parameters", "sequence_id"], 0),
    (["parameters", "sequence_id"], ""),
    (["parameters", "sequence_id"], -1),
    (["parameters", "sequence_id"], 2**64),
    (["parameters", "sequence_start"], True),
    (["parameters", "sequence_end"], True),
    (["parameters", "sequence_takeover"], True),
    (["parameters", "sequence_ids"], ["s-1"]),
    (["parameters", "timeout"], 5),
    (["parameters", "binary_data_output"], False),
    (["parameters", "sequence_step"], -1),
    (["inputs"], []),
    (["inputs"], GOOD["inputs"] * 2),
    (["inputs", 0, "name"], "u"),
    (["inputs", 0, "datatype"], "INT64"),
    (["inputs", 0, "shape"], [2, 1, 3]),
    (["inputs", 0, "shape"], [1, 3, 2]),
    (["inputs", 0, "shape"], [1, 0, 3]),
    (["inputs", 0, "shape"], [6]),
    (["inputs", 0, "shape"], []),
    (["inputs", 0, "data"], [1, 2, 3, 4, 5, 6]),
    (["inputs", 0, "parameters", "binary_data_size"], 23),
    (["inputs", 0, "parameters", "shared_memory_region"], "r"),
    (["inputs", 0, "parameters"], {}),
    (["outputs"], [{"name": "y", "parameters": {"binary_data": False}}]),
    (["outputs"], [{"name": "y", "parameters": {"classification": 1}}]),
    (["outputs"], [{"name": "z_next"}]),
    (["outputs"], [{"name": "y"}, {"name": "z_next"}]),
]


@pytest.mark.parametrize(("path", "value"), NOT_PLAIN)
def test_what_is_not_plain_is_left_to_the_full_reading(path: list[Any], value: Any) -> None:
    assert take(changed(path, value)) is None


@pytest.mark.parametrize("data", [X.tobytes()[:-1], X.tobytes() + b"x", b"", np.full(6, np.nan, "f4").tobytes()])
def test_other_data_are_left_to_the_full_reading(data: bytes) -> None:
    assert take(GOOD, data) is None


@pytest.mark.parametrize("length", [b"", b"0", b"x", b"-1", b"99999999", b"\xc2\xb2"])
def test_a_length_that_is_none_is_left_to_the_full_reading(length: bytes) -> None:
    assert open_plain(orjson.dumps(GOOD) + X.tobytes(), length) is None


def test_more_steps_than_a_call_may_have_are_left_to_the_full_reading() -> None:
    assert take(GOOD, max_steps=1) is None


VALUES = st.sampled_from([None, 0, 1, 2, True, "", "x", "y", "FP32", [], [1, 2, 3], [1, 2, 3.0], {}, 24, 2**70])


@given(st.sampled_from([path for path, _ in NOT_PLAIN]), VALUES)
def test_what_is_taken_means_the_same_to_the_full_reading(path: list[Any], value: Any) -> None:
    document = changed(path, value)
    taken = take(document)
    if taken is None:
        return
    head = json.dumps(document).encode()
    full = read(head + X.tobytes(), len(head))
    assert full.inputs[0].tobytes() == taken[1].tobytes()
    assert [(asked.name, asked.is_binary) for asked in full.outputs[:1]] == [("y", True)]


@pytest.mark.parametrize("token", [-1, 0, 2, 3])
def test_tokens_beyond_the_vocabulary_are_left_to_the_full_reading(token: int) -> None:
    document = changed(["inputs", 0], {"name": "x", "shape": [1, 1], "datatype": "INT64"})
    document["inputs"][0]["parameters"] = {"binary_data_size": 8}
    taken = take(document, np.array([token], NUMPY["INT64"]).tobytes(), PlainInfer("m", 1, TOKENS))
    assert (taken is not None) == (0 <= token < 3)


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("sequence_id", ["s-1", 7])
@pytest.mark.parametrize("request_id", [None, 'a"b\\é%d', ""])
def test_the_answer_is_the_full_ones(sequence_id: Any, request_id: str | None, replayed: bool) -> None:
    taken = take(changed(["parameters", "sequence_id"], sequence_id) | {"id": request_id})
    assert taken is not None
    y = np.array([[0.5, -1], [2, 3]], np.float32)
    body, json_bytes = PLAIN.write(taken[0], Result(y, 2, 6, None, replayed), "2026-01-01T00:00:00.000Z")
    told = {
        "sequence_id": sequence_id,
        "sequence_step": 6,
        "sequence_replayed": replayed,
        "sequence_expires_at": "2026-01-01T00:00:00.000Z",
    }
    head = {"model_name": "m%", "model_version": "3"} | ({} if request_id is None else {"id": request_id})
    full, full_bytes = encode_answer({**head, "parameters": told}, [("y", [y], True)])
    assert (orjson.loads(body[:json_bytes]), body[json_bytes:]) == (orjson.loads(full[:full_bytes]), y.tobytes())
