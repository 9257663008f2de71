"""A store for the life of this process: it holds what the caller puts there, packed, in a dictionary."""

from __future__ import annotations

import heapq
import struct
from collections import OrderedDict
from collections.abc import Sequence
from math import ceil

from service.stores.store import (
    EXPIRED,
    NUM_ANSWERS,
    TOMBSTONE_SECONDS,
    Advance,
    Begin,
    Change,
    End,
    Forget,
    Key,
    Record,
    Replace,
    Tombstone,
    Touch,
)

_HEAD = struct.Struct("<QQdddQIIB")
# revision, step, created, last used, ttl, second it is watched at, version, number of the fingerprint, answers
_LENGTH = struct.Struct("<I")

_NUM_PARTS = 64


class MemoryStore:
    """A million idle sequences are a million byte strings: no object, and no key, is kept beside them."""

    write_through = False
    shared = False

    def __init__(self) -> None:
        self._shelves: dict[tuple[str, str], _Shelf] = {}
        self._ended = _Tombstones()

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        self._shelves.clear()
        self._ended.clear()

    async def commit(self, changes: Sequence[Change]) -> list[bool]:
        return [self._apply(change) for change in changes]

    async def read(self, key: Key, now: float) -> Record | Tombstone | None:
        record = self._find(key)
        if record is None:
            tombstone = self._ended.get(key)
        elif record.expires_at > now:
            return record
        else:
            tombstone = Tombstone(EXPIRED, record.expires_at)
        return tombstone if tombstone and now < tombstone.ended_at + TOMBSTONE_SECONDS else None

    async def expire(self, now: float, most: int) -> list[Key]:
        most -= self._ended.drop_old(now, most)
        ended: list[Key] = []
        for shelf in list(self._shelves.values()):
            while most > 0 and (name := shelf.next_due(now)) is not None:
                most -= 1
                expires_at = _expires_at(shelf.packed[name])
                if expires_at > now:
                    shelf.put(shelf.unpack(name), watch_anew=True)
                    continue
                key = (*shelf.owner, name)
                self._remove(key)
                self._bury(key, Tombstone(EXPIRED, expires_at))
                ended.append(key)
        return ended

    async def count(self, model: str) -> int:
        return sum(len(shelf.packed) for (_, name), shelf in self._shelves.items() if name == model)

    async def keep_secret(self, made: bytes) -> bytes | None:
        return None

    async def list(self, tenant: str, model: str, *, after: str, most: int, now: float) -> list[Record]:
        if (shelf := self._shelves.get((tenant, model))) is None:
            return []
        live = (name for name, packed in shelf.packed.items() if name > after and _expires_at(packed) > now)
        return [shelf.unpack(name) for name in heapq.nsmallest(most, live)]

    def _apply(self, change: Change) -> bool:
        match change:
            case Begin(record):
                standing = self._find(record.key)
                if standing and standing.expires_at > record.created_at:
                    return standing.revision == record.revision
                self._put(record)
            case Advance(key):
                return self._advance(key, change)
            case Replace(record, revision):
                if not self._stands(record.key, revision):
                    return self._stands(record.key, record.revision)
                self._put(record)
            case Touch(key, revision, last_used_at):
                if not self._stands(key, revision):
                    return False
                record = self._shelves[key[:2]].unpack(key[2])
                record.last_used_at = last_used_at
                self._put(record)
            case End():
                return self._end(change)
            case Forget(key, revision):
                if not self._stands(key, revision):
                    return False
                self._remove(key)
        return True

    def _advance(self, key: Key, change: Advance) -> bool:
        record = self._find(key)
        if record is None:
            return False
        if record.revision != change.revision:
            same = (record.revision, record.step, record.state) == (change.new_revision, change.step, change.state)
            return same and (change.answer is None or record.answers[-1:] == [change.answer])
        record.revision, record.step, record.state = change.new_revision, change.step, change.state
        record.last_used_at = change.last_used_at
        if change.answer is not None:
            record.answers = [*record.answers, change.answer][-NUM_ANSWERS:]
        self._put(record)
        return True

    def _end(self, change: End) -> bool:
        tombstone = Tombstone(change.reason, change.ended_at)
        if change.revision is not None and not self._stands(change.key, change.revision):
            return self._find(change.key) is None and self._ended.get(change.key) == tombstone
        self._remove(change.key)
        self._bury(change.key, tombstone)
        return True

    def _find(self, key: Key) -> Record | None:
        shelf = self._shelves.get(key[:2])
        return shelf.unpack(key[2]) if shelf and key[2] in shelf.packed else None

    def _stands(self, key: Key, revision: int) -> bool:
        shelf = self._shelves.get(key[:2])
        packed = shelf.packed.get(key[2]) if shelf else None
        return packed is not None and int(_HEAD.unpack_from(packed)[0]) == revision

    def _put(self, record: Record) -> None:
        self._ended.discard(record.key)
        owner = record.key[:2]
        if owner not in self._shelves:
            self._shelves[owner] = _Shelf(owner)
        self._shelves[owner].put(record)

    def _remove(self, key: Key) -> None:
        shelf = self._shelves.get(key[:2])
        if shelf and key[2] in shelf.packed:
            shelf.remove(key[2])
            if not shelf.packed:
                del self._shelves[key[:2]]

    def _bury(self, key: Key, tombstone: Tombstone) -> None:
        self._ended.put(key, tombstone)


class _Tombstones:
    """In many small dictionaries: one that grows moves all that is in it at once."""

    def __init__(self) -> None:
        self._parts: tuple[OrderedDict[Key, Tombstone], ...] = tuple(OrderedDict() for _ in range(_NUM_PARTS))
        self._next = 0  # the part to look at

    def get(self, key: Key) -> Tombstone | None:
        return self._parts[hash(key) % _NUM_PARTS].get(key)

    def put(self, key: Key, tombstone: Tombstone) -> None:
        part = self._parts[hash(key) % _NUM_PARTS]
        part[key] = tombstone
        part.move_to_end(key)

    def discard(self, key: Key) -> None:
        self._parts[hash(key) % _NUM_PARTS].pop(key, None)

    def drop_old(self, now: float, most: int) -> int:
        """Let go of those that are known no longer; how many."""
        dropped = 0
        for _ in range(_NUM_PARTS):
            part = self._parts[self._next]
            while part and dropped < most and next(iter(part.values())).ended_at + TOMBSTONE_SECONDS <= now:
                part.popitem(last=False)
                dropped += 1
            if dropped == most:
                break
            self._next = (self._next + 1) % _NUM_PARTS
        return dropped

    def clear(self) -> None:
        for part in self._parts:
            part.clear()


class _Shelf:
    """The records of one tenant and model, by sequence id."""

    def __init__(self, owner: tuple[str, str]) -> None:
        self.owner = owner
        self.packed: dict[str, bytes] = {}
        self._fingerprints: list[str] = []
        self._due: dict[int, set[str]] = {}  # by the second in which to look; renewing a lease leaves it as it is
        self._seconds: list[int] = []  # heap of the seconds in use

    def put(self, record: Record, *, watch_anew: bool = False) -> None:
        name, second = record.key[2], ceil(record.expires_at)
        before = self.packed.get(name)
        if before is not None:
            watched = _watched_at(before)
            if watched <= second and not watch_anew:
                second = watched
            else:
                self._forget(name, watched)
        if second not in self._due:
            self._due[second] = set()
            heapq.heappush(self._seconds, second)
        self._due[second].add(name)
        self.packed[name] = self._pack(record, second)

    def remove(self, name: str) -> None:
        self._forget(name, _watched_at(self.packed.pop(name)))

    def unpack(self, name: str) -> Record:
        packed = self.packed[name]
        revision, step, created, last_used, ttl, _, version, fingerprint, num_answers = _HEAD.unpack_from(packed)
        at = _HEAD.size
        parts: list[bytes] = []
        for _ in range(1 + num_answers):
            (length,) = _LENGTH.unpack_from(packed, at)
            at += _LENGTH.size
            parts.append(packed[at : at + length])
            at += length
        return Record(
            key=(*self.owner, name),
            version=version,
            fingerprint=self._fingerprints[fingerprint],
            revision=revision,
            step=step,
            state=parts[0],
            answers=parts[1:],
            created_at=created,
            last_used_at=last_used,
            ttl_seconds=ttl,
        )

    def next_due(self, now: float) -> str | None:
        """A sequence whose second has come."""
        while self._seconds and self._seconds[0] <= now:
            if due := self._due[self._seconds[0]]:
                return next(iter(due))
            del self._due[heapq.heappop(self._seconds)]
        return None

    def _pack(self, record: Record, second: int) -> bytes:
        if record.fingerprint not in self._fingerprints:
            self._fingerprints.append(record.fingerprint)
        head = _HEAD.pack(
            record.revision,
            record.step,
            record.created_at,
            record.last_used_at,
            record.ttl_seconds,
            second,
            record.version,
            self._fingerprints.index(record.fingerprint),
            len(record.answers),
        )
        parts = [head]
        for part in (record.state, *record.answers):
            parts += (_LENGTH.pack(len(part)), part)
        return b"".join(parts)

    def _forget(self, name: str, second: int) -> None:
        self._due[second].discard(name)


def _expires_at(packed: bytes) -> float:
    fields = _HEAD.unpack_from(packed)
    return float(fields[3] + fields[4])


def _watched_at(packed: bytes) -> int:
    return int(_HEAD.unpack_from(packed)[5])
