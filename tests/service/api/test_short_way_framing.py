"""Requests as they come over a connection: in pieces, many at once, of both ways in turn; each is answered in order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.service.api.clients import SUM
from tests.service.api.socket_server import LONG_WAY, Caller, Wire, get, open_wire, post, steps_path
from tests.service.workers.wires import settle, wait_until_read

KEY, OTHER_KEY = b"X-API-Key: alices-key\r\n", b"X-API-Key: bobs-own-key\r\n"
ONE = b'{"inputs": [[1, 2]]}'
ALL = f"/v1/models/{SUM}/sequences"
NUMBERS = count()


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "with workers"])
def wire(repository: Path, request: pytest.FixtureRequest) -> Iterator[Wire]:
    keys = ("alice:alices-key", "bob:bobs-own-key")
    with open_wire(repository, api_keys=keys, workers=request.param) as opened:
        yield opened


@pytest.fixture
def caller(wire: Wire) -> Caller:
    """A worker has the connection, if there are any."""
    return wire.connect() if wire.server.workers is None else settle(wire, wire.connect(), KEY)


@pytest.fixture
def path(wire: Wire) -> str:
    return begun(wire)


def begun(wire: Wire) -> str:
    """The path of a new sequence of Alice's."""
    name = f"s-{next(NUMBERS)}"
    assert wire.connect().call(post(ALL, b'{"sequence_id": "%s"}' % name.encode(), KEY)).status == 201
    return steps_path(SUM, name)


def own(path: str) -> bytes:
    return get(path).replace(b"\r\n\r\n", b"\r\n" + KEY + b"\r\n")


def test_a_request_may_break_at_any_byte(wire: Wire, caller: Caller, path: str) -> None:
    request, alone, before = post(path, ONE, KEY), wire.server.workers is None, wire.steps.taken
    places = range(1, len(request), 1 if alone else 5)  # to see that another process has read takes long
    for step, at in enumerate(places, 1):
        taken = wire.steps.taken
        caller.send(request[:at])
        if alone:
            wire.ask(lambda: None)
        else:
            wait_until_read(caller)
        assert wire.steps.taken == taken
        caller.send(request[at:])
        assert caller.receive().document["step"] == step
    assert wire.steps.taken == before + len(places) * alone
    wire.wait_until_done()


def test_requests_in_one_packet_are_answered_in_their_order(wire: Wire, caller: Caller, path: str) -> None:
    other, info = begun(wire), path.removesuffix("/steps")
    step, elsewhere, long, look = post(path, ONE, KEY), post(other, ONE, KEY), post(path, ONE, KEY, LONG_WAY), own(info)
    caller.send(step, step, look, step, elsewhere, elsewhere, long, look, step, look, look, elsewhere)
    answers = [caller.receive() for _ in range(12)]
    assert {answer.status for answer in answers} == {200}
    assert [answer.document["step"] for answer in answers] == [1, 2, 2, 3, 1, 2, 4, 4, 5, 5, 5, 3]
    wire.wait_until_done()


def test_a_packet_may_end_in_the_middle_of_the_next_request(wire: Wire, caller: Caller, path: str) -> None:
    step = post(path, ONE, KEY)
    for at in (1, 30, len(step) - len(ONE), len(step) - 3):
        caller.send(step, step[:at])
        first = caller.receive()
        caller.send(step[at:])
        assert caller.receive().document["step"] == first.document["step"] + 1


def test_hundreds_of_requests_that_are_read_late_are_all_answered(wire: Wire, caller: Caller, path: str) -> None:
    caller.send(*[post(path, ONE, KEY)] * 600)
    assert [caller.receive().document["step"] for _ in range(600)] == list(range(1, 601))


@pytest.mark.parametrize(
    "headers",
    [
        b"Expect: 100-continue\r\n",
        b"Content-Type: application/json\r\nContent-Type: application/json\r\n",
        b"Content-Encoding: identity\r\n",
        b"Content-Type: application/json; charset=utf-8\r\n",
        b"Upgrade: h2c\r\n",
        b"If-Match: *\r\n",
    ],
)
def test_out_of_the_way_headers_change_nothing(caller: Caller, path: str, headers: bytes) -> None:
    answer = caller.call(post(path, ONE, KEY, headers))
    if answer.status == 100:
        answer = caller.receive()
    assert (answer.status, answer.document["step"]) == (200, 1)
    assert caller.call(post(path, ONE, KEY)).document["step"] == 2


def test_a_chunked_body_is_read(caller: Caller, path: str) -> None:
    head = post(path, b"", KEY, b"Transfer-Encoding: chunked\r\n").replace(b"Content-Length: 0\r\n", b"")
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (ONE[:5], ONE[5:], b""))
    assert caller.call(head + pieces, post(path, ONE, KEY)).document["step"] == 1
    assert caller.receive().document["step"] == 2


@pytest.mark.parametrize(
    ("version", "header"),
    [(b"1.0", b""), (b"1.0", b"Connection: keep-alive\r\n"), (b"1.1", b"Connection: close\r\n")],
)
def test_who_asks_for_the_end_of_the_connection_gets_it(
    caller: Caller, path: str, version: bytes, header: bytes
) -> None:
    if header != b"Connection: close\r\n":  # the same headers were seen before, with another meaning
        assert "connection" not in caller.call(post(path, ONE, KEY, header)).headers
    answer = caller.call(post(path, ONE, KEY, header).replace(b"HTTP/1.1", b"HTTP/" + version))
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert caller.is_closed()


def test_another_method_or_version_with_the_same_headers_is_seen(caller: Caller, path: str) -> None:
    request = post(path, ONE, KEY)
    assert caller.call(request).status == 200
    assert caller.call(request.replace(b"POST", b"PUT")).status == 405
    assert caller.call(request).document["step"] == 2
    caller.send(request.replace(b"POST", b"HEAD"))
    assert caller.socket.recv(65536).endswith(b"\r\n\r\n"), "HEAD has no body"
    assert caller.call(request).document["step"] == 3


@pytest.mark.parametrize("change", [-1, +1])
def test_a_wrong_content_length_spoils_no_other_call(wire: Wire, path: str, change: int) -> None:
    request = post(path, ONE, KEY).replace(b": %d\r\n" % len(ONE), b": %d\r\n" % (len(ONE) + change))
    caller = wire.connect()
    caller.send(request)
    if change > 0:
        caller.close()
    else:
        assert caller.is_closed(), "what is left over is no request, and must not be taken for the answer"
    assert wire.connect().call(post(path, ONE, KEY)).document["step"] == 1
    wire.wait_until_done()


def test_each_request_needs_its_own_key(wire: Wire, caller: Caller, path: str) -> None:
    assert caller.call(post(path, ONE, KEY)).document["step"] == 1
    for wrong in (b"X-API-Key: alices-kex\r\n", b"X-API-Key:\r\n", b"", b"X-Api-Key: alices-key \xff\r\n"):
        answer = caller.call(post(path, ONE, wrong))
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="carousel"')
    assert caller.call(post(path, ONE, OTHER_KEY)).status == 404
    assert caller.call(post(path, ONE, b"Authorization: Bearer alices-key\r\n")).document["step"] == 2
    caller.send(post(path, ONE, KEY), post(path, ONE, OTHER_KEY), post(path, ONE), post(path, ONE, KEY))
    assert [caller.receive().status for _ in range(4)] == [200, 404, 401, 200]


def test_the_same_sequence_under_other_spellings(caller: Caller, path: str) -> None:
    assert caller.call(post(path, ONE, KEY)).document["step"] == 1
    assert caller.call(post(path.replace("/s-", "/%73-"), ONE, KEY)).document["step"] == 2
    assert caller.call(post(path + "?version=1", ONE, KEY)).document["step"] == 3
    assert caller.call(post(path + "#there", ONE, KEY)).document["step"] == 4
    assert caller.call(post("http://x" + path, ONE, KEY)).document["step"] == 5
    for wrong in (path + "?version=9", path + "/", path.replace("/s-", "//s-"), "/" + path, path + "%"):
        answer = caller.call(post(wrong, ONE, KEY))
        assert answer.status == 404, wrong
    assert caller.call(post(path, ONE, KEY)).document["step"] == 6


def test_what_begins_like_the_last_request_is_no_request_in_the_middle_of_another(
    wire: Wire, caller: Caller, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, other = post(path, ONE, KEY), begun(wire)
    assert caller.call(request).document["step"] == 1
    caller.send(post(other, request, KEY)[: -len(request)])
    wire.ask(lambda: None)
    assert caller.call(request).status == 400, "it is a body, and no JSON"
    assert caller.call(request).document["step"] == 2
    monkeypatch.setattr(wire.app.state.service.registry.get(SUM).engine, "_max_queue", 0)  # refused at once
    caller.send(request[:-5])
    wire.ask(lambda: None)
    assert [caller.call(request[-5:] + request).status, caller.receive().status] == [503, 503]
    assert caller.call(request[-5:] + request).status == 400, "the same bytes begin no request now"
    monkeypatch.undo()
    assert wire.connect().call(request).document["step"] == 3


def test_what_is_as_long_as_the_last_request_is_no_request_in_the_middle_of_a_head(
    wire: Wire, caller: Caller, path: str
) -> None:
    assert caller.call(post(path, ONE, KEY)).document["step"] == 1
    opening = b"POST / HTTP/1.1\r\nX-As: "
    assert len(opening) == len(b"POS" + ONE)
    for piece in (opening, b"POS" + ONE):
        caller.send(piece)
        wire.ask(lambda: None)
    assert caller.call(b"\r\n\r\n").status == 405
    assert wire.connect().call(post(path, ONE, KEY)).document["step"] == 2


def test_blank_lines_between_requests_are_passed_over(wire: Wire, caller: Caller, path: str) -> None:
    request = post(path, ONE, KEY)
    spaced_ones = (request, request + b"\r\n", request, b"\r\n" + request, request, b"\r\n\r\n" + request) * 2
    for step, spaced in enumerate(spaced_ones, 1):
        assert caller.call(spaced).document["step"] == step
        wire.ask(lambda: None)
