"""Whatever is no plain step is answered as without workers, and the connection goes on, and to a worker again."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from tests.service.api.clients import SUM
from tests.service.api.socket_server import get, post, steps_path
from tests.service.workers.wires import TwinCallers, Twins, open_twins

KEY = b"X-API-Key: alices-key\r\n"
ONE, BIG = b'{"inputs": [[1, 2]]}', b'{"inputs": [[3e38, 3e38], [3e38, 3e38]]}'
CHUNKED = b"Transfer-Encoding: chunked\r\n"
UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
NUMBERS = count()


@pytest.fixture(scope="module")
def twins(sums: Path) -> Iterator[Twins]:
    with open_twins(sums, api_keys=("alice:alices-key",), max_steps=500) as opened:
        yield opened


@pytest.fixture
def callers(twins: Twins) -> TwinCallers:
    return twins.connect(KEY)


@pytest.fixture
def path(callers: TwinCallers) -> str:
    """Of a sequence that has gone three steps, at both."""
    path = steps_path(SUM, f"s-{next(NUMBERS)}")
    for _ in range(3):
        assert callers.step(path, b'{"inputs": [[1, 2]], "start": true}').status == 200
    assert callers.is_away
    return path


def chunked(path: str, *pieces: bytes) -> bytes:
    head = post(path, b"", KEY, CHUNKED).replace(b"Content-Length: 0\r\n", b"")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def delete(path: str) -> bytes:
    return get(path.removesuffix("/steps"), KEY).replace(b"GET", b"DELETE")


ODD: dict[str, tuple[Callable[[str], bytes], int]] = {
    "GET of the sequence": (lambda path: get(path.removesuffix("/steps"), KEY), 200),
    "GET of its state": (lambda path: get(path.replace("/steps", "/state"), KEY), 200),
    "GET of another address": (lambda path: get("/v1/models", KEY), 200),
    "GET of nothing": (lambda path: get("/v1/nothing", KEY), 404),
    "DELETE": (delete, 204),
    "another method": (lambda path: post(path, ONE, KEY).replace(b"POST", b"PUT"), 405),
    "a sequence that is not there": (lambda path: post(path.replace("/s-", "/t-"), ONE, KEY), 404),
    "no id of a sequence": (lambda path: post(path.replace("/s-", "/s,"), ONE, KEY), 422),
    "a model that is not there": (lambda path: post(path.replace(SUM, "no-model"), ONE, KEY), 404),
    "an odd spelling": (lambda path: post(path.replace("/s-", "/%73-"), ONE, KEY), 200),
    "a query": (lambda path: post(path + "?version=1", ONE, KEY), 200),
    "another step": (lambda path: post(path, b'{"inputs": [[1, 2]], "step": 9}', KEY), 409),
    "a step before": (lambda path: post(path, b'{"inputs": [[7, 7]], "step": 0}', KEY), 409),
    "a result that is not finite": (lambda path: post(path, BIG, KEY), 422),
    "an input that is not finite": (lambda path: post(path, b'{"inputs": [[NaN, 1]]}', KEY), 422),
    "an input too large": (lambda path: post(path, b'{"inputs": [[1e39, 1]]}', KEY), 422),
    "a wrong shape": (lambda path: post(path, b'{"inputs": [[1, 2, 3]]}', KEY), 422),
    "no inputs": (lambda path: post(path, b'{"inputs": []}', KEY), 422),
    "too many steps": (lambda path: post(path, b'{"inputs": [%b]}' % b",".join([b"[1,2]"] * 501), KEY), 413),
    "a field that is not there": (lambda path: post(path, b'{"inputs": [[1, 2]], "beams": 1}', KEY), 400),
    "no JSON": (lambda path: post(path, b'{"inputs": [[1, 2]', KEY), 400),
    "no body": (lambda path: post(path, b"", KEY), 400),
    "MessagePack": (
        lambda path: post(path, b"\x81\xa6inputs\x91\x92\x01\x02", KEY, b"Content-Type: application/msgpack\r\n"),
        200,
    ),
    "no key": (lambda path: post(path, ONE), 401),
    "a wrong key": (lambda path: post(path, ONE, KEY.replace(b"key\r", b"kez\r")), 401),
    "gzip": (lambda path: post(path, gzip.compress(ONE, mtime=0), KEY, b"Content-Encoding: gzip\r\n"), 200),
    "a time limit": (lambda path: post(path, ONE, KEY, b"X-Request-Timeout-Ms: 60000\r\n"), 200),
    "no time limit": (lambda path: post(path, ONE, KEY, b"X-Request-Timeout-Ms: soon\r\n"), 422),
    "pieces": (lambda path: chunked(path, ONE[:5], ONE[5:]), 200),
    "no pieces": (lambda path: chunked(path), 400),
    "a wish for another protocol": (
        lambda path: post(path, ONE, KEY, b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"),
        200,
    ),
    "a header twice": (lambda path: post(path, ONE, KEY, b"Content-Type: application/json\r\n" * 2), 200),
    "300 kB": (lambda path: post(path, ONE + b" " * 300_000, KEY), 200),
    "blank lines before": (lambda path: b"\r\n\r\n" + post(path, ONE, KEY), 200),
    "the whole address": (lambda path: post("http://x" + path, ONE, KEY), 200),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_plain_step_is_answered_alike_and_the_connection_goes_on(
    callers: TwinCallers, path: str, name: str
) -> None:
    make, status = ODD[name]
    assert callers.call(make(path)).status == status
    other = steps_path(SUM, f"s-{next(NUMBERS)}")
    for n in range(1, 4):
        answer = callers.step(other, b'{"inputs": [[1, 1]], "start": true}')
        assert (answer.status, answer.document["outputs"]) == (200, [[n, n]])
    callers.settle()
    assert callers.step(other, ONE).document["step"] == 4
    assert callers.is_away
    where = callers.call(get(path.removesuffix("/steps"), KEY))
    assert where.status == (410 if name == "DELETE" else 200)
    if name != "DELETE":
        assert where.document["step"] == (4 if status == 200 and not name.startswith("GET") else 3)


def test_odd_calls_among_plain_ones_in_one_packet_are_answered_in_order(callers: TwinCallers, path: str) -> None:
    step, look, odd = post(path, ONE, KEY), get(path.removesuffix("/steps"), KEY), post(path, b"{", KEY)
    callers.call(step, step, look, odd, step, post(path, ONE), chunked(path, ONE), step, look, odd, step)
    statuses = [200] + [callers.receive().status for _ in range(10)]
    assert statuses == [200, 200, 200, 400, 200, 401, 200, 200, 200, 400, 200]
    assert callers.call(look).document["step"] == 9


def test_a_conflict_says_where_the_sequence_stands(callers: TwinCallers, path: str) -> None:
    answer = callers.step(path, b'{"inputs": [[1, 2]], "step": 9}')
    assert (answer.status, answer.document["code"], answer.document["expected_step"]) == (409, "step_conflict", 3)
    callers.settle()
    again = callers.step(path, b'{"inputs": [[1, 2]], "step": 3}')
    assert (again.document["step"], again.document["outputs"], callers.is_away) == (4, [[4, 8]], True)


def test_a_sequence_whose_lease_is_over_is_gone(twins: Twins, callers: TwinCallers, path: str) -> None:
    name = f"s-{next(NUMBERS)}"
    short, created = steps_path(SUM, name), path.rsplit("/", 2)[0]
    body = b'{"sequence_id": "%b", "ttl_seconds": 0.01}' % name.encode()
    looks = get(short.removesuffix("/steps"), KEY)
    for wire in (twins.fronted, twins.plain):
        beside = wire.connect()
        assert beside.call(post(created, body, KEY)).status == 201
        while beside.call(looks).status != 410:
            pass
    assert callers.step(short, ONE).document["code"] == "sequence_gone"
    callers.settle()
    assert callers.step(short, b'{"inputs": [[1, 2]], "start": true}').status in (200, 410)


def test_a_body_that_is_waited_for_is_asked_for(callers: TwinCallers, path: str) -> None:
    request = post(path, ONE, KEY, b"Expect: 100-continue\r\n")
    assert callers.call(request[: -len(ONE)]).status == 100
    assert callers.call(ONE).document["step"] == 4
    callers.settle()
    assert callers.step(path, ONE).document["step"] == 5


@pytest.mark.parametrize(
    ("change", "answered"),
    [
        (lambda request: request.replace(b"HTTP/1.1", b"HTTP/1.0"), True),
        (lambda request: request.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: keep-alive\r\n"), True),
        (lambda request: request.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n"), True),
        (lambda request: request.replace(b"HTTP/1.1", b"HTTP/1.7"), True),
        (lambda request: request.replace(b"\r\n", b"\n"), True),
        (lambda request: request.replace(b"\r\n", b"\n").replace(b"\n\n", b"\r\n\r\n"), True),
        (lambda request: request.replace(b"Host: x", b"Host\x00: x"), True),
        (lambda request: request.replace(b"Content-Length: 20", b"Content-Length: +20"), True),
        (lambda request: request.replace(b"Content-Length: 20", b"Content-Length: 20\r\nContent-Length: 21"), True),
        (lambda request: request.replace(b"Content-Length: 20", b"Content-Length: 19"), False),
        (lambda request: b"\x16\x03\x01\x02\x00 hello TLS", True),
        (lambda request: b"\x00" * 10 + b"\r\n\r\n", True),
        (lambda request: b"POST\r\n", True),
        (lambda request: b"no method " * 20_000, True),
        (lambda request: request[:60] + b"X-Long: " + b"a" * 300_000, True),
    ],
)
def test_who_ends_the_connection_or_sends_what_is_no_request_is_told_alike(
    callers: TwinCallers, path: str, change: Callable[[bytes], bytes], answered: bool
) -> None:
    sent = change(post(path, ONE, KEY))
    with suppress(ConnectionError):
        if answered:
            callers.call(sent)
        else:  # the answer may be lost, since what is left over is no request
            callers.fronted.send(sent)
            callers.plain.send(sent)
    assert all(caller.is_closed() or not answered for caller in (callers.fronted, callers.plain))


def test_a_connection_becomes_a_stream(callers: TwinCallers, path: str) -> None:
    assert callers.call(get(f"/v1/models/{SUM}/stream", KEY, UPGRADE)).status == 101
    for caller in (callers.fronted, callers.plain):
        caller.send(b"\x89\x80\x00\x00\x00\x00")
        assert caller.socket.recv(2) == b"\x8a\x00", "a ping is answered"
