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
from tests.service.api.clients import SUM, open_client, open_server, problem_of
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
