"""What the load generator sends, and how it reads what comes back."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from benchmarks.connection import body_of, is_whole
from benchmarks.payloads import DOORS, NUM_INPUTS, InferDoor, StepsDoor, input_index, inputs_of, job_request
from benchmarks.plan import Outcome

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n" + b'{"step": 1}'


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("door", DOORS)
def test_requests_of_a_run_are_equally_long_and_carry_the_numbers_exactly(door, num_steps):
    pool = inputs_of(seed=3, num_features=5)
    chunks = [pool[n : n + num_steps] for n in range(3)]
    rendered = [DOORS[door].render(chunk) for chunk in chunks]
    template = DOORS[door].template("lstm", "s-1", rendered[0], num_steps, first=False)
    requests = [DOORS[door].fill(template, text, step) for step, text in zip((0, 9, 12345678), rendered, strict=True)]
    assert len({len(request) for request in requests}) == 1
    for request, sent, step in zip(requests, chunks, (0, 9, 12345678), strict=True):
        head, _, body = request.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        read = {"http": read_steps, "infer": read_infer}[door]
        assert read(head, body) == (sent, step)


def read_steps(head: bytes, body: bytes):
    document = json.loads(body)
    assert document["start"] is True
    return document["inputs"], document["step"]


def read_infer(head: bytes, body: bytes):
    length = int(re.search(rb"Inference-Header-Content-Length: (\d+)", head)[1])
    document = json.loads(body[:length])
    assert document["parameters"]["sequence_id"] == "s-1"
    values = np.frombuffer(body[length:], np.float32).reshape(document["inputs"][0]["shape"][1:])
    return np.round(values.astype(float), 4).tolist(), document["parameters"]["sequence_step"]


def test_only_the_first_request_begins_a_sequence_under_v2():
    first, later = (InferDoor.template("lstm", "s-1", bytes(20), 1, first=first) for first in (True, False))
    assert b'"sequence_start":true' in first
    assert b'"sequence_start":false' in later


def test_outputs_are_read_from_either_form():
    body = b'{"outputs":[[0.5,1.0],[2.0,0.25]]}'
    assert StepsDoor.outputs(_answer(body)) == [[0.5, 1.0], [2.0, 0.25]]
    head = b'{"outputs":[{"name":"y","shape":[1,2,2]}]}'
    values = np.array([[0.5, 1.0], [2.0, 0.25]], np.float32)
    field = b"inference-header-content-length: %d\r\n" % len(head)
    assert InferDoor.outputs(_answer(head + values.tobytes(), field)) == values.tolist()


def _answer(body: bytes, field: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + field + b"content-length: %d\r\n\r\n" % len(body) + body


def test_streams_use_every_input_and_neighbours_differ():
    assert {input_index(0, step) for step in range(NUM_INPUTS)} == set(range(NUM_INPUTS))
    assert input_index(0, 0) != input_index(1, 0)


def test_a_job_is_one_long_sequence():
    head, _, body = job_request("lstm", 3, 100).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    (sequence,) = json.loads(body)["sequences"]
    assert [len(step) for step in sequence["inputs"]] == [3] * 100


def test_an_answer_is_whole_when_its_last_byte_is_there_and_not_before():
    assert [n for n in range(len(ANSWER) + 1) if is_whole(ANSWER[:n])] == [len(ANSWER)]
    assert json.loads(body_of(ANSWER)) == {"step": 1}


def test_an_answer_without_a_length_is_an_error():
    with pytest.raises(ConnectionError, match="content-length"):
        is_whole(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nbody")


@pytest.mark.parametrize(
    ("changed", "void"),
    [
        ({}, ""),
        ({"errors": 2, "first_error": "503"}, "2 errors, the first: 503"),
        ({"load_cpu_seconds": 1.5}, "the load generator took 75% of its core"),
        ({"lag_p99_seconds": 0.0025}, "the load generator was 2.5 ms late"),
    ],
)
def test_a_run_is_void_when_the_generator_may_be_what_was_measured(changed, void):
    assert _outcome(**changed).void == void


def test_figures_of_a_run():
    outcome = _outcome()
    assert (outcome.rate, outcome.server_cpu_us, outcome.load_share) == (500.0, 1800.0, 0.25)


def _outcome(**changed) -> Outcome:
    values = {"steps": 1000, "seconds": 2.0, "server_cpu_seconds": 1.8, "load_cpu_seconds": 0.5, "latency": {}}
    return Outcome(**{**values, "lag_p99_seconds": 0.0001, "jobs": 0, "errors": 0, **changed})
