"""Frames of a worker that wait: those alike join into one, so that their steps run together."""

from __future__ import annotations

import pytest

from service.protocol.frames import OPEN, STEP, FrameReader
from service.workers.frame_link import FrameLink
from service.workers.link import _Stream
from tests.service import wire
from tests.service.protocol.specs import spec

pytestmark = pytest.mark.anyio

MOST = 6


def steps(*handles: int, flags: int = 0, length: int = 1) -> bytes:
    return wire.message(wire.step_block([(n, n, 0, [n] * length) for n in handles], steps=length, flags=flags))


async def received(*frames: bytes) -> list[list[int]]:
    """The handles of each message that comes of them, every one of which is a single block."""
    reader, stream = FrameReader(spec(1)), _Stream(0, FrameLink(lambda *_: None, lambda: None), MOST)
    for frame in (*frames, None):
        stream.put(frame)
    found = []
    while (message := await stream.receive())["type"] == "websocket.receive":
        (block,) = reader.read(message["bytes"])
        assert block.kind in (OPEN, STEP)
        assert block.kind == OPEN or block.records["inputs"].ravel().tolist() == [
            handle for handle in block.records["handle"].tolist() for _ in range(block.steps_each)
        ]
        found.append(block.records["handle"].tolist())
    return found


async def test_blocks_alike_join_in_the_order_in_which_they_came() -> None:
    assert await received(steps(1, 2), steps(3), steps(4, 5)) == [[1, 2, 3, 4, 5]]


async def test_what_differs_or_is_too_much_stays_apart() -> None:
    opened = wire.message(wire.open_block([(7, "a"), (8, "b")]))
    assert await received(opened, opened, steps(1), steps(2, flags=wire.NONE), steps(3, flags=wire.NONE)) == [
        [7, 8, 7, 8],
        [1],
        [2, 3],
    ]
    assert await received(steps(1, 2, 3, 4), steps(5, 6), steps(7)) == [[1, 2, 3, 4, 5, 6], [7]]
    assert await received(steps(1, length=2), steps(2, length=2), steps(3, length=2), steps(4, length=2)) == [
        [1, 2, 3],
        [4],
    ]
