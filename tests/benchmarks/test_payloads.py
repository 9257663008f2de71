"""What the load generator sends, and how it reads what comes back."""

from __future__ import annotations

import json

import pytest

from benchmarks.connection import body_of, is_whole
from benchmarks.payloads import NUM_INPUTS, input_index, inputs_of, job_request, render_inputs, steps_request
from benchmarks.plan import Outcome

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n" + b'{"step": 1}'


def test_requests_of_a_run_are_equally_long_and_carry_the_numbers_exactly():
    inputs = inputs_of(seed=3, num_features=5)
    rendered = [render_inputs(step) for step in inputs]
    template = steps_request("lstm", "s-1", len(rendered[0]))
    requests = [template % (text, step) for step, text in zip((0, 9, 12345678), rendered, strict=False)]
    assert len({len(request) for request in requests}) == 1
    for request, sent, step in zip(requests, inputs, (0, 9, 12345678), strict=False):
        head, _, body = request.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert json.loads(body) == {"inputs": [sent], "step": step, "start": True}


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
