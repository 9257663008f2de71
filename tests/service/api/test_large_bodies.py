"""A body of megabytes holds nobody else up: what is too much is not read, and the rest is read off the loop."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from service.api import predict
from service.protocol import arrays, pieces
from service.readers import make_readers
from tests.service.api.clients import SUM, TOKENS, open_client, open_server, problem_of
from tests.service.api.streams import ask, open_stream

pytestmark = pytest.mark.anyio

PREDICT = f"/v1/models/{SUM}/predict"
STEPS = f"/v1/models/{SUM}/sequences/large/steps"
MAX_STEPS = 60_000
MSGPACK = {"content-type": "application/msgpack"}


@pytest.fixture
async def roomy(repository: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(repository, max_steps=MAX_STEPS) as client:
        yield client


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that `inputs` were read in."""
    threads: list[str] = []

    def read_inputs(*args: Any) -> Any:
        threads.append(threading.current_thread().name.partition("_")[0])
        return arrays.read_inputs(*args)

    monkeypatch.setattr(predict, "read_inputs", read_inputs)
    return threads


def in_predict(inputs: bytes) -> bytes:
    return b'{"outputs": "none", "sequences": [{"inputs": ' + inputs + b"}]}"


def in_steps(inputs: bytes) -> bytes:
    return b'{"outputs": "none", "start": true, "inputs": ' + inputs + b"}"


BOTH = pytest.mark.parametrize(
    ("path", "body", "place"), [(PREDICT, in_predict, "sequences[0].inputs"), (STEPS, in_steps, "inputs")]
)
Wrap = Callable[[bytes], bytes]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_readers_stand_back_for_the_loop() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with make_readers() as threads:
        assert threads.submit(niceness).result() > niceness()


@BOTH
async def test_large_bodies_are_read_off_the_loop(
    roomy: httpx.AsyncClient, readers: list[str], path: str, body: Wrap, place: str
) -> None:
    good = await roomy.post(path, content=body(b"[" + b"[0,1]," * 49_999 + b"[0,1]]"))
    assert good.status_code == 200, good.text
    bad = await roomy.post(path, content=body(b"[" + b"[0,1]," * 49_999 + b'[0,"x"]]'))
    assert problem_of(bad, 422, "invalid_input")["place"] == f"{place}[49999][1]"
    assert readers == ["carousel-reader"] * 2


FLAT, NESTED = b"0,1," * 59_999 + b"0,1", b"[[" + b"[0,1]," * 59_999 + b"[0,1]]]"
INFER = b'{"inputs": [{"name": "x", "shape": [1, 60000, 2], "datatype": "FP32", "data": %b}]}'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PREDICT, in_predict(NESTED[1:-1])),
        (STEPS, in_steps(NESTED[1:-1])),
        (f"/v2/models/{SUM}/infer", INFER % (b"[" + FLAT + b"]")),
        (f"/v2/models/{SUM}/infer", INFER % NESTED),
    ],
)
async def test_readers_rest_between_pieces(
    roomy: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes
) -> None:
    rests: list[str] = []
    monkeypatch.setattr(pieces, "sleep", lambda seconds: rests.append(threading.current_thread().name))
    assert (await roomy.post(path, content=body)).status_code == 200
    assert len(rests) >= len(body) // (pieces.PIECE_BYTES + 10)
    assert all(name.startswith("carousel-reader") for name in rests)


@BOTH
async def test_small_bodies_are_read_where_they_arrive(
    roomy: httpx.AsyncClient, readers: list[str], path: str, body: Wrap, place: str
) -> None:
    assert (await roomy.post(path, content=body(b"[[0,1]]"))).status_code == 200
    assert readers == ["MainThread"]


async def test_long_frames_of_a_stream_are_read_off_the_loop(repository: Path, readers: list[str]) -> None:
    async with open_server(repository) as running, open_stream(running.address) as stream:
        for num_steps in (10_000, 1):
            told = await ask(stream, sequence_id="long", inputs=[[0, 1]] * num_steps, outputs="none", start=True)
    assert told["step"] == 10_001
    assert readers == ["carousel-reader", "MainThread"]


@BOTH
@pytest.mark.parametrize("step", [b"[0,1]", b"[]", b"0,0"])
async def test_too_many_steps_are_refused_before_they_are_read(
    roomy: httpx.AsyncClient, readers: list[str], path: str, body: Wrap, place: str, step: bytes
) -> None:
    refused = await roomy.post(path, content=body(b"[" + (step + b",") * MAX_STEPS + step + b"]"))
    assert problem_of(refused, 413, "too_large")["received"] == MAX_STEPS + 1
    assert readers == []


async def test_too_many_steps_in_messagepack_are_refused_before_they_are_read(
    roomy: httpx.AsyncClient, readers: list[str]
) -> None:
    body = msgspec.msgpack.encode({"sequences": [{"inputs": [[0, 1]] * (MAX_STEPS + 1)}]})
    refused = await roomy.post(PREDICT, content=body, headers=MSGPACK)
    assert msgspec.json.decode(refused.content)["received"] == MAX_STEPS + 1
    assert readers == []


MANY = 100_000
FORECAST = f"/v1/models/{SUM}/generate"


def names(value: bytes) -> bytes:
    return b"{" + b",".join(b'"%d":%b' % (n, value) for n in range(MANY)) + b"}"


@pytest.mark.parametrize(
    ("path", "body", "code", "facts"),
    [
        (
            f"/v1/models/{TOKENS}/generate",
            b'{"inputs": "a", "steps": 1, "stop": [' + b'"a",' * MANY + b'"a"]}',
            "invalid_input",
            {"place": "stop", "expected": "array of length <= 16"},
        ),
        (
            FORECAST,
            b'{"inputs": [[1,2]], "steps": 2, "future_inputs": {"1": [' + b"1," * MANY + b"1]}}",
            "invalid_input",
            {"place": "future_inputs.1", "expected": 2, "received": MANY + 1},
        ),
        (
            FORECAST,
            b'{"inputs": [[1,2]], "steps": 1, "future_inputs": ' + names(b"[1]") + b"}",
            "invalid_input",
            {"place": "future_inputs", "expected": 2},
        ),
        (
            f"/v1/models/{SUM}/sequences",
            b'{"initial_state": ' + names(b"[[1,2]]") + b"}",
            "invalid_state",
            {"received": MANY},
        ),
        (
            PREDICT,
            b'{"sequences": [' + b'{"inputs": [[1,2]]},' * MANY + b'{"inputs": [[1,2]]}]}',
            "too_large",
            {"limit_name": "sequences", "received": 1025},
        ),
    ],
)
async def test_no_list_or_object_that_is_too_long_is_read(
    roomy: httpx.AsyncClient, path: str, body: bytes, code: str, facts: dict[str, Any]
) -> None:
    document = problem_of(await roomy.post(path, content=body), 413 if code == "too_large" else 422, code)
    assert {name: document.get(name) for name in facts} == facts


@pytest.mark.parametrize(
    ("model", "body", "status", "facts"),
    [
        (SUM, b'{"inputs": [], "parameters": {"sequence_ids": [' + b"1," * MANY + b"1]}}", 413, {"received": 1025}),
        (SUM, INFER.replace(b"60000", b"1") % (b"[" + FLAT + b"]"), 400, {"expected": 2, "received": 120_000}),
        (
            TOKENS,
            b'{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": [' + b'"a",' * MANY + b'"a"]}]}',
            400,
            {"expected": 1, "received": None},
        ),
    ],
)
async def test_neither_is_under_v2(
    roomy: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, model: str, body: bytes, status: int, facts: Any
) -> None:
    rests: list[float] = []
    monkeypatch.setattr(pieces, "sleep", rests.append)
    answer = await roomy.post(f"/v2/models/{model}/infer", content=body)
    document = answer.json()
    assert (answer.status_code, {name: document.get(name) for name in facts}, rests) == (status, facts, [])


async def test_long_series_of_what_is_known_ahead_are_read_in_pieces(
    roomy: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    monkeypatch.setattr(pieces, "sleep", rests.append)
    ahead = [n % 7 for n in range(20_000)]
    body = {"inputs": [[0, 5]], "steps": len(ahead), "future_inputs": {"1": ahead}, "outputs": "none"}
    answer = await roomy.post(FORECAST, content=msgspec.json.encode(body))
    assert [value[1] for value in answer.json()["values"]] == ahead
    assert rests


async def test_a_file_that_is_sent_to_be_loaded_is_not_read(repository: Path) -> None:
    body = b'{"parameters": ' + names(b'"file"') + b"}"
    async with open_client(repository, model_control=True) as client:
        refused = await client.post(f"/v2/repository/models/{SUM}/load", content=body)
    assert (refused.status_code, refused.json()["received"]) == (400, [])


async def test_steps_of_all_sequences_count(roomy: httpx.AsyncClient, readers: list[str]) -> None:
    most = b"[" + b"[0,1]," * (MAX_STEPS - 1) + b"[0,1]]"
    body = b'{"sequences": [{"inputs": ' + most + b'}, {"inputs": [[0,1]]}]}'
    assert problem_of(await roomy.post(PREDICT, content=body), 413, "too_large")["received"] == MAX_STEPS + 1
    assert len(readers) == 1


async def test_where_a_large_body_is_not_finite_is_told_by_its_byte(roomy: httpx.AsyncClient) -> None:
    body = in_predict(b"[" + b"[0,1]," * 50_000 + b"[0,-Infinity]]")
    place = problem_of(await roomy.post(PREDICT, content=body), 422, "invalid_input")["place"]
    assert place.startswith("body, byte ")
    assert body[int(place.split()[-1]) :].startswith(b"Infinity")
