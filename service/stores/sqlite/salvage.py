"""Finds records in a damaged file: page by page, by what each says of itself, whatever SQLite makes of the file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from service.stores.record import Damaged, name_in, unpack_origin
from service.stores.sqlite.frames import (
    HEAD,
    MAGIC,
    OPENING_BITS,
    ORIGIN,
    TOMBSTONE,
    WITNESS,
    id_of,
    length_of,
    place_of,
    read_frame,
    unpack_answer,
    unpack_head,
    unpack_tombstone,
)
from service.stores.sqlite.wal import PAGE_BYTES, frames


@dataclass(slots=True)
class Found:
    """The newest frame of one row."""

    order: int
    frame: bytes
    body: bytes


@dataclass
class Salvaged:
    """What can be written into a new file as it is, and what cannot."""

    rows: list[tuple[int, bytes]] = field(default_factory=list)
    names: list[tuple[bytes, int, bool]] = field(default_factory=list)
    """Name, number and whether it is a tombstone."""
    damaged: list[bytes] = field(default_factory=list)
    """Names of sequences whose last state is lost."""
    nameless: int = 0
    """Of those, the ones whose name is lost too."""
    opening: int = 0
    """Highest that wrote any of it."""


def salvage(path: Path, log: bytes, names: dict[int, bytes]) -> Salvaged:
    """Everything whose own checksum holds. `names` are those that could still be read, by number."""
    sequences: dict[int, dict[int, Found]] = defaultdict(dict)
    salvaged = Salvaged()
    seen: set[bytes] = set()
    for data in _frames_in(path, log):
        if (ends := data[:24] + data[-8:]) in seen:
            continue  # a page stands in the log as often as it was written
        try:
            row_id, order, body = read_frame(data)
        except Damaged:
            continue
        seen.add(ends)
        number, slot = place_of(row_id)
        before = sequences[number].get(slot)
        if before is None or before.order <= order:
            sequences[number][slot] = Found(order, data, body)
        salvaged.opening = max(salvaged.opening, order >> OPENING_BITS)
    newest: dict[bytes, tuple[int, int]] = {}
    for number, slots in sequences.items():
        name = _name(slots) or names.get(number)
        if name is None:
            salvaged.nameless += 1
        else:
            newest[name] = max(newest.get(name, (0, 0)), (max(found.order for found in slots.values()), number))
    for name, (_, number) in newest.items():
        _keep(salvaged, name, number, sequences[number])
    known = newest.keys()
    salvaged.damaged += [name for name in names.values() if name not in known]
    return salvaged


def _keep(salvaged: Salvaged, name: bytes, number: int, slots: dict[int, Found]) -> None:
    head, origin, tombstone = slots.get(HEAD), slots.get(ORIGIN), slots.get(TOMBSTONE)
    last = max(found.order for found in slots.values())
    if tombstone and tombstone.order == last:
        salvaged.rows.append((id_of(number, TOMBSTONE), tombstone.frame))
        salvaged.names.append((name, number, True))
    elif head is None or origin is None or head.order < last or not _belong(head, origin):
        salvaged.damaged.append(name)  # an answer, or the witness, tells of a later state than is left
    else:
        revision = unpack_head(head.body).revision
        for slot, found in slots.items():
            # what is older than the origin belongs to a sequence that had the number before
            is_ours = found.order >= origin.order and (
                slot in (HEAD, ORIGIN) or (slot <= WITNESS and unpack_answer(found.body)[0] <= revision)
            )
            if is_ours:
                salvaged.rows.append((id_of(number, slot), found.frame))
        salvaged.names.append((name, number, False))


def _belong(head: Found, origin: Found) -> bool:
    return unpack_head(head.body).first_revision == unpack_origin(origin.body).revision


def _name(slots: dict[int, Found]) -> bytes | None:
    origin, tombstone = slots.get(ORIGIN), slots.get(TOMBSTONE)
    if tombstone and (origin is None or tombstone.order > origin.order):
        return unpack_tombstone(tombstone.body)[0]
    return name_in(origin.body) if origin else None


def _frames_in(path: Path, log: bytes) -> Iterator[bytes]:
    """Whatever begins as a frame, of every page of the file and of its log, the old versions too."""
    with path.open("rb") as file:
        main = file.read()
    logged = list(frames(log))
    newest = {number: page for _, number, _, page in logged}

    def early(number: int) -> bytes:
        return main[(number - 1) * PAGE_BYTES : number * PAGE_BYTES] if number else b""

    def late(number: int) -> bytes:
        return newest.get(number) or early(number)

    for page in (*map(early, range(1, len(main) // PAGE_BYTES + 2)), *(page for _, _, _, page in logged)):
        at = page.find(MAGIC)
        while at >= 0:
            length = length_of(page, at)
            if length and at + length <= len(page):
                yield page[at : at + length]
            elif length:
                yield _spilled(page, at, length, late)
                yield _spilled(page, at, length, early)
            at = page.find(MAGIC, at + 1)


def _spilled(page: bytes, at: int, length: int, pages: Callable[[int], bytes]) -> bytes:
    """A frame that is too long for its page, with the rest from the pages that it goes on to."""
    header = 2 + _varint_bytes(12 + 2 * length)
    least = (PAGE_BYTES - 12) * 32 // 255 - 23
    local = least + (header + length - least) % (PAGE_BYTES - 4)
    end = at + (local if local <= PAGE_BYTES - 35 else least) - header
    parts, missing, following = [page[at:end]], length - (end - at), page[end : end + 4]
    while missing > 0 and (more := pages(int.from_bytes(following, "big"))):
        parts.append(more[4 : 4 + missing])
        missing -= len(parts[-1]) or missing
        following = more[:4]
    return b"".join(parts)


def _varint_bytes(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)
