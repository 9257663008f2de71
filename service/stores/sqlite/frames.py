"""What the rows of a file hold. Each says itself what it is, so that it is found in a file that is damaged.

A frame is a magic number, its length, its id, the order it was written in, what it holds, and a checksum over all.
Ids of one sequence are neighbours: its number times 32, plus the slot.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b

from service.stores.record import SEAL_BYTES, Damaged, unseal
from service.stores.store import NUM_ANSWERS

HEAD, FIRST_ANSWER, WITNESS, TOMBSTONE, ORIGIN = 0, 1, 1 + NUM_ANSWERS, 2 + NUM_ANSWERS, 31
"""Slots. The answers stand in a ring of sixteen. The witness is written where no answer is, so that every change of a
state is on record twice: a head that is older than its answers or its witness is not the last one."""

SLOT_BITS = 5
OPENING_BITS = 40
"""The order of a frame: how often the file was opened, and 40 bits that count what was written since."""

MAGIC = b"\xc5\x17\xe1s"
NAME_AT = 24 + 2 + 8 + 8 + 8 + 4 + 1
"""Where the name begins in an origin's frame and in a tombstone's; the first byte is 1, as SQL counts."""

_FRAME = struct.Struct("<4sIQQ")  # magic, bytes in all, id, order
_HEAD = struct.Struct("<QQQddB")  # revision, first revision, step, last used, lease in seconds, next answer
_SERIAL = struct.Struct("<Q")
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
    return number << SLOT_BITS | slot


def place_of(row_id: int) -> tuple[int, int]:
    """Number and slot."""
    return row_id >> SLOT_BITS, row_id & (1 << SLOT_BITS) - 1


def frame(row_id: int, order: int, body: bytes) -> bytes:
    sealed = _FRAME.pack(MAGIC, _FRAME.size + len(body) + SEAL_BYTES, row_id, order) + body
    return sealed + blake2b(sealed, digest_size=SEAL_BYTES).digest()


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
    if data is None:
        raise Damaged("a row is missing")
    found, _, body = read_frame(data)
    if found != row_id:
        raise Damaged("the row of another stands here")
    return body


def pack_head(head: Head) -> bytes:
    return (
        _HEAD.pack(head.revision, head.first_revision, head.step, head.last_used_at, head.ttl_seconds, head.next_answer)
        + head.state
    )


def unpack_head(body: bytes) -> Head:
    if len(body) < _HEAD.size:
        raise Damaged("a head is cut short")
    return Head(*(*_HEAD.unpack_from(body), body[_HEAD.size :]))


def pack_answer(revision: int, answer: bytes) -> bytes:
    return _SERIAL.pack(revision) + answer


def unpack_answer(body: bytes) -> tuple[int, bytes]:
    """The revision that it led to, and the answer."""
    if len(body) < _SERIAL.size:
        raise Damaged("an answer is cut short")
    return _SERIAL.unpack_from(body)[0], body[_SERIAL.size :]


def pack_tombstone(name: bytes, ended_at: float, reason: str) -> bytes:
    return _TOMBSTONE.pack(len(name), ended_at, 0, 0, 0) + name + reason.encode()


def unpack_tombstone(body: bytes) -> tuple[bytes, float, str]:
    """Name, end and reason."""
    if len(body) < _TOMBSTONE.size:
        raise Damaged("a tombstone is cut short")
    length, ended_at, *_ = _TOMBSTONE.unpack_from(body)
    return body[_TOMBSTONE.size :][:length], ended_at, body[_TOMBSTONE.size + length :].decode(errors="replace")
