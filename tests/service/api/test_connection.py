"""What is no HTTP, and heads that do not end, over real sockets: answered by a problem document, and forgotten."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.connection import MAX_HEAD_BYTES
from tests.service.api.clients import SUM
from tests.service.api.processes import Served, serve

STEP = b'{"inputs": [[1, 2]], "start": true}'


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Served]:
    with serve(repository) as served:
        yield served


def connect(served: Served) -> socket.socket:
    host, port = served.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def send(served: Served, *pieces: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    received = b""
    with connect(served) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            while piece := connection.recv(65536):
                received += piece
        except ConnectionError:  # what was not read yet when the server closed
            pass
    return received


def error_of(received: bytes, status: int) -> dict[str, Any]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), received[:500]
    assert b"\r\nconnection: close" in head
    document: dict[str, Any] = json.loads(body)
    return document


@pytest.mark.parametrize(
    ("request_", "instance"),
    [
        (b"\x16\x03\x01\x02\x00 hello TLS\r\n\r\n", ""),
        (b"GET /v1/models/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", ""),
        (b"GET /v1/models?x=" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "/v1/models"),
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "/v1/models"),
        (b"POST /v1/models HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n", "/v1/models"),
    ],
)
def test_what_is_no_http_gets_a_problem_document(served: Served, request_: bytes, instance: str) -> None:
    received = send(served, request_)
    document = error_of(received, 400)
    assert b"\r\ncontent-type: application/problem+json\r\n" in received
    assert document["code"] == "malformed_request"
    assert document["instance"] == instance


def test_under_v2_the_document_is_the_protocols(served: Served) -> None:
    received = send(served, b"GET /v2/models HTTP/1.1\r\nHost: x\r\nContent-Length: some\r\n\r\n")
    assert "HTTP/1.1" in error_of(received, 400)["error"]
    assert b"\r\ncontent-type: application/json\r\n" in received


@pytest.mark.parametrize("piece", [b"X-A: " + b"a" * 1000 + b"\r\n", b"a" * 1000], ids=["many headers", "one header"])
def test_a_head_without_end_is_cut_off(served: Served, piece: bytes) -> None:
    opening = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Long: "
    received = send(served, opening, *[piece * 50] * 40)  # 2 MB, where a read takes a quarter of one
    # a reset may overtake the answer
    assert not received or error_of(received, 431)["limit"] == MAX_HEAD_BYTES
    page = httpx.get(f"{served.address}/metrics").text
    assert 'carousel_errors_total{code="head_too_large"}' in page


def test_a_long_body_counts_as_no_head(served: Served) -> None:
    body = b'{"sequence_id": "long"}' + b" " * 90_000
    head = b"POST /v1/models/%s/sequences HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (SUM.encode(), len(body))
    received = send(served, head + b"\r\n" + body, head + b"Connection: close\r\n\r\n", body)
    assert received.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 201" in received
    assert b"HTTP/1.1 409" in received


def test_a_head_in_pieces_is_read(served: Served) -> None:
    head = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: " + b"a" * 60_000 + b"\r\n\r\n"
    received = send(served, *[head[at : at + 5000] for at in range(0, len(head), 5000)])
    assert received.startswith(b"HTTP/1.1 200")


def test_a_call_before_the_garbage_never_takes_the_refusal_for_its_answer(served: Served) -> None:
    path = f"/v1/models/{SUM}/sequences/before-garbage/steps".encode()
    call = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path, len(STEP)) + STEP
    received = send(served, call + b"\x00garbage\r\n\r\n")
    assert not received or received.startswith(b"HTTP/1.1 200"), received


SOCKET = {
    b"Connection": b"Upgrade",
    b"Upgrade": b"websocket",
    b"Sec-WebSocket-Version": b"13",
    b"Sec-WebSocket-Key": b"dGhlIHNhbXBsZSBub25jZQ==",
}


def request(line: str, fields: dict[bytes, bytes], body: bytes = b"") -> bytes:
    lines = [b"%b HTTP/1.1" % line.encode(), b"Host: x", *(b"%b: %b" % field for field in fields.items())]
    return b"\r\n".join([*lines, b"", body])


@pytest.mark.parametrize("size", [1, 40, 10_000], ids=["in bytes", "in pieces", "at once"])
def test_a_body_behind_a_wish_for_another_protocol_is_read(served: Served, size: int) -> None:
    body = b'{"sequence_id": "h2c-%d"}' % size
    wish = {b"Connection": b"Upgrade, HTTP2-Settings", b"Upgrade": b"h2c", b"HTTP2-Settings": b"AAMAAABkAAQ"}
    framings = [(b"Content-Length", b"%d" % len(body), body)]
    framings += [(b"Transfer-Encoding", b"chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))]
    address = f"POST /v1/models/{SUM}/sequences"
    sent = b"".join(request(address, {**wish, name: value}, body) for name, value, body in framings)
    sent += request("GET /health/live", {b"Connection": b"close"})
    received = send(served, *[sent[at : at + size] for at in range(0, len(sent), size)])
    statuses = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"201", b"409", b"200"], received


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("POST /v1/models/{}/stream", {}),
        ("POST /v1/models/{}/sequences/some/steps", {b"Content-Length": b"2"}),
        ("GET /v1/models/{}/stream", {b"Content-Length": b"2"}),
        ("GET /v1/models/{}/stream", {b"Transfer-Encoding": b"chunked"}),
        ("GET /v1/models/{}/stream", {b"Sec-WebSocket-Version": b"8"}),
        ("GET /v1/models/{}/stream", {b"Sec-WebSocket-Key": b"\xff"}),
        ("GET /v1/models/{}/stream", {b"Sec-WebSocket-Key": b"c2hvcnQ="}),
        ("GET /v1/models/{}/stream", {b"sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ=="}),
        ("GET /v1/models/{}/stream", {b"Sec-WebSocket-Protocol": b"\x09@"}),
    ],
)
def test_a_request_for_a_websocket_that_does_not_fit_gets_a_problem_document(
    served: Served, line: str, change: dict[bytes, bytes]
) -> None:
    received = send(served, request(line.format(SUM), {**SOCKET, **change}, b"{}"))
    assert b"\r\ncontent-type: application/problem+json\r\n" in received
    assert "WebSocket" in error_of(received, 400)["detail"]


def test_a_websocket_never_takes_the_connection_from_a_call(served: Served) -> None:
    body = b'{"inputs": [[1, 2]], "start": true}'
    call = request(f"POST /v1/models/{SUM}/sequences/before-socket/steps", {b"Content-Length": b"%d" % len(body)}, body)
    received = send(served, call + request(f"GET /v1/models/{SUM}/stream", SOCKET))
    assert b"HTTP/1.1 101" not in received
