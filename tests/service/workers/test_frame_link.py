"""Frames arrive whole and in order, with the number of their stream, however the bytes come."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from service.workers.frame_link import FrameLink

pytestmark = pytest.mark.anyio


def frame(body: bytes) -> bytes:
    return b"CRB1" + struct.pack("<I", 8 + len(body)) + body


FRAMES = [(0, frame(b"")), (7, frame(b"seven")), (2**32 - 1, frame(b"x" * 30)), (0, frame(b"CRB1"))]
SENT = b"".join(struct.pack("<I", number) + data for number, data in FRAMES)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 17, len(SENT)])
def test_frames_may_come_in_any_pieces(size: int) -> None:
    heard: list[tuple[int, bytes]] = []
    link = FrameLink(lambda *frame: heard.append(frame), lambda: None)
    for at in range(0, len(SENT), size):
        link.data_received(SENT[at : at + size])
    assert heard == FRAMES


def test_frames_may_come_cut_anywhere() -> None:
    for at in range(len(SENT)):
        heard: list[tuple[int, bytes]] = []
        link = FrameLink(lambda *frame, heard=heard: heard.append(frame), lambda: None)
        link.data_received(SENT[:at])
        link.data_received(SENT[at:])
        assert heard == FRAMES, at


async def test_frames_larger_than_a_socket_holds_go_both_ways_and_the_end_is_told_once() -> None:
    heard: list[tuple[str, int, bytes]] = []
    ended: list[str] = []
    sockets = dict(zip(("here", "there"), socket.socketpair(), strict=True))
    links = {
        name: await FrameLink.open(
            sock,
            lambda number, data, name=name: heard.append((name, number, data)),
            lambda name=name: ended.append(name),
        )
        for name, sock in sockets.items()
    }
    large = frame(bytes(range(256)) * 20_000)
    for n in range(3):
        for link in links.values():
            link.send(n, large)
    while len(heard) < 6:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for name in links:
        assert [entry for entry in heard if entry[0] == name] == [(name, n, large) for n in range(3)]
    links["here"].close()
    while len(ended) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for link in links.values():
        link.send(1, large)
        link.close()
    assert sorted(ended) == ["here", "there"]
