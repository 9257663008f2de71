"""What goes over a channel arrives, in order, whatever its size and however late; no descriptor is left behind."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from service.workers.channel import MAX_INLINE_BYTES, Channel, Message, channel_pair

pytestmark = pytest.mark.anyio


@dataclass
class Ends:
    """Of one channel: this one sends, the other hears."""

    here: Channel
    there: Channel
    heard: list[Message] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    async def hear(self, count: int) -> list[Message]:
        while len(self.heard) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return self.heard


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    before = num_descriptors()
    (one, other), heard, ended = channel_pair(), list[Message](), list[str]()
    for end in (one, other):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    here = Channel(one, heard.append, lambda: ended.append("here"))
    yield (opened := Ends(here, Channel(other, heard.append, lambda: ended.append("there")), heard, ended))
    opened.here.close()
    opened.there.close()
    assert num_descriptors() == before


def connected() -> tuple[int, socket.socket]:
    """The descriptor of one end of a connection, and the other end."""
    one, other = socket.socketpair()
    return one.detach(), other


def speak(message: Message, other: socket.socket) -> bytes:
    """What comes out at the other end of the connection that came with a message, when that is written to."""
    assert message.connection is not None
    with socket.socket(fileno=message.connection) as arrived, other:
        arrived.sendall(message.data[:100])
        arrived.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: other.recv(4096), b""))


@pytest.mark.parametrize("length", [0, 1, 1000, MAX_INLINE_BYTES, 3_000_000])
@pytest.mark.parametrize("connection", [False, True])
async def test_a_message_of_any_length_arrives_as_it_was_with_its_connection(
    ends: Ends, length: int, connection: bool
) -> None:
    data, fields = os.urandom(length), {"statuses": {200: 7}, "total": 0.25, "name": "a"}
    descriptor, other = connected() if connection else (None, None)
    ends.here.send(Message("told", fields, data, descriptor))
    (message,) = await ends.hear(1)
    assert (message.kind, message.fields, message.data) == ("told", fields, data)
    if other is None:
        assert message.connection is None
    else:
        assert speak(message, other) == data[:100]


async def test_lengths_about_the_largest_packet_all_arrive(ends: Ends) -> None:
    lengths = range(MAX_INLINE_BYTES - 40, MAX_INLINE_BYTES + 5)
    for length in lengths:
        ends.here.send(Message("x", {}, b"a" * length))
    assert [len(message.data) for message in await ends.hear(len(lengths))] == list(lengths)


async def test_many_messages_that_nobody_reads_yet_wait_and_arrive_in_order(ends: Ends) -> None:
    count, others = 300, []
    for n in range(count):
        descriptor, other = connected() if n % 3 == 0 else (None, None)
        others.append(other)
        ends.here.send(Message("x", {"n": n}, b"a" * (40_000 if n % 10 == 0 else 4000), descriptor))
    assert ends.here._waiting, "the socket is full"
    heard = await ends.hear(count)
    assert [message.fields["n"] for message in heard] == list(range(count))
    for message, other in zip(heard, others, strict=True):
        assert (message.connection is None) == (other is None)
        if other is not None:
            assert speak(message, other) == message.data[:100]


async def test_both_ends_send_at_once(ends: Ends) -> None:
    for n in range(100):
        ends.here.send(Message("there", {"n": n}, b"a" * 4000))
        ends.there.send(Message("here", {"n": n}, b"a" * 4000))
    heard = await ends.hear(200)
    for kind in ("here", "there"):
        assert [message.fields["n"] for message in heard if message.kind == kind] == list(range(100))


async def test_the_other_end_gone_is_told_once_and_nothing_stays_open(ends: Ends) -> None:
    descriptor, other = connected()
    ends.there.send(Message("last"))
    ends.there.close()
    while not ends.ended:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert [message.kind for message in ends.heard] == ["last"], "what was sent before is heard"
    ends.here.send(Message("late", {}, b"", descriptor))
    ends.here.close()
    with other:
        assert other.recv(1) == b"", "a connection that can go nowhere is closed"
    for _ in range(5):
        await asyncio.sleep(0)
    assert ends.ended == ["here"], "who closes an end is not told of it"


@pytest.mark.parametrize("gone", ["here", "there"])
async def test_connections_that_wait_are_closed_when_an_end_is(ends: Ends, gone: str) -> None:
    others = []
    for _ in range(200):
        descriptor, other = connected()
        others.append(other)
        ends.here.send(Message("x", {}, b"a" * 4000, descriptor))
    assert ends.here._waiting
    if gone == "here":
        ends.here.close()
        assert not ends.ended
    else:
        ends.there.close()
        while not ends.ended:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert ends.ended == ["here"]
    heard = ends.heard
    if gone == "here":
        while "there" not in ends.ended:  # noqa: ASYNC110
            await asyncio.sleep(0)
    for message in heard:
        assert message.connection is not None
        os.close(message.connection)
    for other in others:
        with other:
            assert other.recv(1) == b""


async def test_a_descriptor_that_the_system_has_no_room_for_waits(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    send, refusals = socket.send_fds, [OSError("too many descriptors on their way")] * 3

    def send_later(*args: object) -> int:
        if refusals:
            raise refusals.pop()
        return send(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "send_fds", send_later)
    descriptor, other = connected()
    ends.here.send(Message("first", {}, b"abc", descriptor))
    ends.here.send(Message("second"))
    first, second = await ends.hear(2)
    assert (first.kind, second.kind) == ("first", "second")
    assert speak(first, other) == b"abc"
