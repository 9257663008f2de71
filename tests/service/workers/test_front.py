"""However its bytes come, a worker asks for each whole call once, in order, and loses nothing that goes back."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from service.workers.front import MAX_AHEAD_BYTES, Connection, Front, Head
from service.workers.limits import Limits
from service.workers.tally import Tally
from tests.service.api.clients import SUM
from tests.service.api.socket_server import get, post, steps_path

pytestmark = pytest.mark.anyio

LIMITS = Limits({"alices-key": "alice"}, 100_000, 1000, 100, 100, 60.0, (0.1, 1.0))
KEY = b"X-API-Key: alices-key\r\n"
BODY = b'{"inputs": [[1, 2]]}'
CALL = post(steps_path(SUM, "s"), BODY, KEY)


@dataclass
class Asked:
    """What a front was asked for and gave back."""

    front: Front = field(init=False)
    calls: list[tuple[Connection, Head, bytes]] = field(default_factory=list)
    given_back: list[bytes] = field(default_factory=list)
    refuses: bool = False

    def __post_init__(self) -> None:
        self.front = Front(LIMITS, Tally(LIMITS.second_bounds), self.ask, self.take_back, lambda: None)

    def ask(self, connection: Connection, head: Head, body: bytes, /) -> bool:
        if not self.refuses:
            self.calls.append((connection, head, body))
        return not self.refuses

    def take_back(self, descriptor: int, data: bytes, patience: int, num_calls: int) -> None:
        os.close(descriptor)
        self.given_back.append(data)

    async def connect(self, data: bytes = b"") -> tuple[Connection, socket.socket]:
        """A connection, and its caller's end."""
        there, here = socket.socketpair()
        connection = Connection(self.front, data, 4)
        await asyncio.get_running_loop().create_unix_connection(lambda: connection, sock=here)
        there.setblocking(False)
        return connection, there


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    asked = Asked()
    yield asked
    for connection in [*asked.front.connections]:
        connection._transport.abort()
    await asyncio.sleep(0)


async def test_a_call_may_break_at_any_byte_and_begin_with_what_came_along(asked: Asked) -> None:
    for at in range(len(CALL) + 1):
        connection, there = await asked.connect(CALL[:at])
        with there:
            connection.data_received(CALL[at:])
            (call,) = asked.calls
            assert call == (connection, Head("alice", SUM, "s", len(BODY)), BODY)
            connection.answer(b"{}")
            asked.calls.clear()
    assert not asked.given_back


async def test_a_call_may_come_byte_by_byte(asked: Asked) -> None:
    connection, there = await asked.connect()
    with there:
        for at in range(len(CALL)):
            assert not asked.calls
            connection.data_received(CALL[at : at + 1])
        assert len(asked.calls) == 1


@pytest.mark.parametrize("at", range(0, len(CALL), 9))
async def test_one_call_is_under_way_at_a_time_and_what_follows_waits(asked: Asked, at: int) -> None:
    connection, there = await asked.connect(CALL * 3 + CALL[:at])
    with there:
        for n in range(1, 4):
            assert len(asked.calls) == n
            connection.answer(b"%d" % n)
        assert len(asked.calls) == 3
        connection.data_received(CALL[at:])
        connection.answer(b"4")
        assert len(asked.calls) == 4
        assert there.recv(65536).count(b"HTTP/1.1 200 OK\r\n") == 4


@pytest.mark.parametrize("odd", [get("/v1/models", KEY), CALL.replace(b"1.1", b"1.0"), CALL.replace(KEY, b""), b"\0"])
@pytest.mark.parametrize("before", [0, 2])
async def test_what_goes_back_is_all_that_is_not_answered(asked: Asked, odd: bytes, before: int) -> None:
    connection, there = await asked.connect(CALL * before + odd + CALL + CALL[:30])
    with there:
        for _ in range(before):
            assert not asked.given_back
            connection.answer(b"{}")
        assert asked.given_back == [odd + CALL + CALL[:30]]
        assert len(asked.calls) == before
        await asyncio.sleep(0)
        assert not asked.front.connections


@pytest.mark.parametrize("sent", [b"\x16\x03\x01 hello", b"POST\r\n", CALL.replace(b"\r", b""), b"P" * 3000])
async def test_what_has_no_end_and_can_be_no_plain_call_goes_back_at_once(asked: Asked, sent: bytes) -> None:
    _, there = await asked.connect(sent)
    with there:
        assert asked.given_back == [sent]


@pytest.mark.parametrize("refuses", [True, False], ids=["refused at once", "refused later"])
async def test_a_call_that_is_refused_goes_back_from_its_first_byte(asked: Asked, refuses: bool) -> None:
    asked.refuses = refuses
    connection, there = await asked.connect(CALL + CALL[:7])
    with there:
        if not refuses:
            connection.give_back()
        assert asked.given_back == [CALL + CALL[:7]]
        connection.data_received(CALL[7:])
        connection.give_back()
        assert (len(asked.calls), len(asked.given_back)) == (not refuses, 1), "it is not here any more"


async def test_a_caller_who_is_gone_is_no_success_and_nothing_goes_back(asked: Asked) -> None:
    connection, there = await asked.connect(CALL + CALL)
    there.close()
    while asked.front.connections:  # noqa: ASYNC110
        await asyncio.sleep(0)
    connection.answer(b"{}")
    assert asked.front.tally.take()["statuses"] == {499: 1}
    connection.give_back()
    assert (len(asked.calls), asked.given_back) == (1, [])


async def test_no_more_is_read_of_a_caller_far_ahead_until_it_has_its_answers(asked: Asked) -> None:
    connection, there = await asked.connect(CALL)
    with there:
        connection.data_received(CALL * (MAX_AHEAD_BYTES // len(CALL) + 2))
        assert not connection._transport.is_reading()
        while not connection._transport.is_reading():
            connection.answer(b"{}")
        assert len(connection._data) <= MAX_AHEAD_BYTES + len(CALL)


async def test_a_quiet_connection_ends_one_in_mid_call_goes_back_and_a_busy_one_stays(asked: Asked) -> None:
    (quiet, one), (begun, two), (busy, three) = [await asked.connect(data) for data in (b"", CALL[:-1], CALL)]
    for connection in (quiet, begun):
        connection.quiet_since -= LIMITS.keep_alive_seconds + 1
    asked.front.tick()
    with one, two, three:
        while len(asked.front.connections) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert asked.front.connections == {busy}
        assert asked.given_back == [CALL[:-1]]
        assert one.recv(1) == b""
    busy.answer(b"{}")
