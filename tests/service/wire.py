"""`carousel.v1.binary` as a client may write it from the documentation alone: struct, and no NumPy."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

LAST, NONE, STATE, SCORE, START, REPLAYED, EXPIRES = 1, 2, 4, 8, 16, 32, 64
NOWHERE = 2**64 - 1
NO_HANDLE = 2**32 - 1


@dataclass
class Answer:
    kind: str
    handle: int
    tag: int
    step: int | None = None
    values: tuple[float, ...] = ()
    """Outputs and states, flat."""
    replayed: bool = False
    status: int | None = None
    problem: dict[str, Any] | None = None
    expires_at: float | None = None


def message(*blocks: bytes) -> bytes:
    body = b"".join(blocks)
    return b"CRB1" + struct.pack("<I", 8 + len(body)) + body


def open_block(names: Iterable[tuple[int, str]]) -> bytes:
    """(handle, sequence id) each; the tag is the handle."""
    records = [struct.pack("<II128s", handle, handle, name.encode()) for handle, name in names]
    return struct.pack("<BBHI", 1, 0, 0, len(records)) + b"".join(records)


def step_block(
    records: Sequence[tuple[int, int, int | None, Sequence[float]]],
    *,
    steps: int = 1,
    flags: int = 0,
    number: str = "f",
) -> bytes:
    """(handle, tag, step, flat inputs) each, all of `steps` steps."""
    head = struct.pack("<BBHI", 2, flags, steps, len(records))
    return head + b"".join(
        struct.pack(f"<IIQ{len(x)}{number}", handle, tag, NOWHERE if step is None else step, *x)
        for handle, tag, step, x in records
    )


def delete_block(handles: Sequence[int]) -> bytes:
    return struct.pack("<BBHI", 3, 0, 0, len(handles)) + b"".join(struct.pack("<II", h, h) for h in handles)


def answers(data: bytes, output_size: int, state_size: int = 0) -> list[Answer]:
    """Every record of a message of the server, in order."""
    magic, length = struct.unpack_from("<4sI", data)
    assert (magic, length) == (b"CRB1", len(data))
    found: list[Answer] = []
    at = 8
    while at < len(data):
        kind, flags, steps, count = struct.unpack_from("<BBHI", data, at)
        at += 8
        read = {129: _opened, 130: _stepped, 131: _deleted, 132: _errors}[kind]
        part, at = read(data, at, count, flags, steps * output_size + (state_size if flags & STATE else 0))
        found += part
    return found


def _opened(data: bytes, at: int, count: int, flags: int, size: int) -> tuple[list[Answer], int]:
    records = [struct.unpack_from("<IIQd", data, at + 24 * n) for n in range(count)]
    found = [Answer("opened", handle, tag, None if step == NOWHERE else step) for handle, tag, step, _ in records]
    return found, at + 24 * count


def _stepped(data: bytes, at: int, count: int, flags: int, size: int) -> tuple[list[Answer], int]:
    told = bool(flags & EXPIRES)
    record = struct.Struct(f"<IIQ{'d' * told}{size}f")
    found = []
    for handle, tag, step, *rest in (record.unpack_from(data, at + record.size * n) for n in range(count)):
        answer = Answer("stepped", handle, tag, step, tuple(rest[told:]), bool(flags & REPLAYED))
        answer.expires_at = rest[0] if told else None
        found.append(answer)
    return found, at + record.size * count


def _deleted(data: bytes, at: int, count: int, flags: int, size: int) -> tuple[list[Answer], int]:
    return [Answer("deleted", *struct.unpack_from("<II", data, at + 8 * n)) for n in range(count)], at + 8 * count


def _errors(data: bytes, at: int, count: int, flags: int, size: int) -> tuple[list[Answer], int]:
    heads = [struct.unpack_from("<IIII", data, at + 16 * n) for n in range(count)]
    at += 16 * count
    found = []
    for handle, tag, status, length in heads:
        found.append(Answer("error", handle, tag, status=status, problem=json.loads(data[at : at + length])))
        at += length
    return found, at
