"""What the rows of a file hold. Each says itself what it is, so that it is found in a file that is damaged.

A frame is a magic number, its length, its id, the order it was written in, what it holds, and a checksum over all.
Ids go by block of 64 numbers, then by slot, then by number: sequences that began together are stepped together, and
their heads fill few pages, as do their answers of one turn.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from service.stores.record import SEAL_BYTES, Damaged, seal, unseal
from service.stores.store import NUM_ANSWERS

HEAD, FIRST_ANSWER, WITNESS, TOMBSTONE, ORIGIN = 0, 1, 1 + NUM_ANSWERS, 2 + NUM_ANSWERS, 3 + NUM_ANSWERS
SLOTS = range(ORIGIN + 1)
"""Slots. The answers stand in a ring of sixteen. The witness is written where no answer is, so that every change of a
state is on record twice: a head that is older than its answers or its witness is not the last one."""

BLOCK_BITS, SLOT_BITS = 6, 5
BLOCK = 1 << BLOCK_BITS
OPENING_BITS = 40
MAX_OPENINGS = 1 << 64 - OPENING_BITS
"""The order of a frame: how often the file was opened, and 40 bits that count what was written since."""

MAGIC = b"\xc5\x17\xe1s"
NAME_AT = 24 + 2 + 8 + 8 + 8 + 4 + 1
"""Where the name begins in an origin's frame and in a tombstone's; the first byte is 1, as SQL counts."""

_FRAME = struct.Struct("<4sIQQ")  # magic, bytes in all, id, order
_HEAD = struct.Struct("<QQQddB")  # revision, first revision, step, last used, lease in seconds, next answer
_REVISION = struct.Struct("<Q")
_FRAMED_HEAD = struct.Struct(_FRAME.format + _HEAD.format[1:])
_FRAMED_REVISION = struct.Struct(_FRAME.format + _REVISION.format[1:])
_TOMBSTONE = struct.Struct("<HdQQI")  # bytes of the name, ended; as long as an origin's head
MIN_FRAME_BYTES = _FRAME.size + SEAL_BYTES
MAX_FRAME_BYTES = 2**30


@dataclass(slots=True)
class Head:
    """What moves with each step."""

    revision: int
    first_revision: int
    """What ties it to its origin."""
    step: int
    last_used_at: float
    ttl_seconds: float
    next_answer: int
    """Place in the ring."""
    state: bytes


def id_of(number: int, slot: int) -> int:
    return (number >> BLOCK_BITS << SLOT_BITS | slot) << BLOCK_BITS | number & BLOCK - 1


def place_of(row_id: int) -> tuple[int, int]:
    """Number and slot."""
    block_and_slot = row_id >> BLOCK_BITS
    number = block_and_slot >> SLOT_BITS << BLOCK_BITS | row_id & BLOCK - 1
    return number, block_and_slot & (1 << SLOT_BITS) - 1


def frame(row_id: int, order: int, body: bytes) -> bytes:
    return seal(_FRAME.pack(MAGIC, MIN_FRAME_BYTES + len(body), row_id, order) + body)


def head_frame(row_id: int, order: int, head: Head) -> bytes:
    length = _FRAMED_HEAD.size + len(head.state) + SEAL_BYTES
    return seal(
        _FRAMED_HEAD.pack(
            MAGIC,
            length,
            row_id,
            order,
            head.revision,
            head.first_revision,
            head.step,
            head.last_used_at,
            head.ttl_seconds,
            head.next_answer,
        )
        + head.state
    )


def answer_frame(row_id: int, order: int, revision: int, answer: bytes) -> bytes:
    """An answer, or the witness, of the change that led to `revision`."""
    length = _FRAMED_REVISION.size + len(answer) + SEAL_BYTES
    return seal(_FRAMED_REVISION.pack(MAGIC, length, row_id, order, revision) + answer)


def length_of(data: bytes, at: int = 0) -> int:
    """Bytes of the frame that begins there, as it says itself; 0 if none can."""
    if len(data) - at < 8:
        return 0
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    return length if MIN_FRAME_BYTES <= length <= MAX_FRAME_BYTES else 0


def read_frame(data: bytes) -> tuple[int, int, bytes]:
    """Id, order and what it holds. Raises Damaged."""
    sealed = unseal(data)
    if len(sealed) < _FRAME.size:
        raise Damaged("a frame is cut short")
    magic, length, row_id, order = _FRAME.unpack_from(sealed)
    if magic != MAGIC or length != len(data):
        raise Damaged("no frame begins here")
    return row_id, order, sealed[_FRAME.size :]


def body_of(data: bytes | None, row_id: int) -> bytes:
    """What the frame of that row holds. Raises Damaged."""
    if not isinstance(data, bytes):
        raise Damaged("a row is missing")
    found, _, body = read_frame(data)
    if found != row_id:
        raise Damaged("the row of another stands here")
    return body


def unpack_head(body: bytes) -> Head:
    if len(body) < _HEAD.size:
        raise Damaged("a head is cut short")
    return Head(*(*_HEAD.unpack_from(body), body[_HEAD.size :]))


def unpack_answer(body: bytes) -> tuple[int, bytes]:
    """The revision that it led to, and the answer."""
    if len(body) < _REVISION.size:
        raise Damaged("an answer is cut short")
    return _REVISION.unpack_from(body)[0], body[_REVISION.size :]


def pack_tombstone(name: bytes, ended_at: float, reason: str) -> bytes:
    return _TOMBSTONE.pack(len(name), ended_at, 0, 0, 0) + name + reason.encode()


def unpack_tombstone(body: bytes) -> tuple[bytes, float, str]:
    """Name, end and reason."""
    if len(body) < _TOMBSTONE.size:
        raise Damaged("a tombstone is cut short")
    length, ended_at, *_ = _TOMBSTONE.unpack_from(body)
    return body[_TOMBSTONE.size :][:length], ended_at, body[_TOMBSTONE.size + length :].decode(errors="replace")
