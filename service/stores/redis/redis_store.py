"""A store in Redis or Valkey, shared by replicas: every commit is one script, and compares before it writes.

Not for Redis Cluster: a commit is about many keys at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_bytes

import structlog

from service.stores.record import Damaged, key_of, name_of, owner_of, state_damaged
from service.stores.redis.fields import (
    DUE_KEY,
    INDEXES,
    SECRET_KEY,
    SEQUENCES,
    Command,
    index_of,
    revision_in,
    unpack_control,
    unpack_moving,
    unpack_record,
    unpack_tombstone,
)
from service.stores.redis.link import Link
from service.stores.redis.scripts import COMMIT, DUE
from service.stores.store import DAMAGED, EXPIRED, TOMBSTONE_SECONDS, Change, End, Key, Record, Tombstone

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Commit:
    changes: Sequence[Change]
    applied: list[bool] | None = None


class RedisStore:
    """`url` as redis-py has it: redis://, rediss:// or unix://."""

    write_through = True
    shared = True

    def __init__(self, url: str) -> None:
        self._link = Link(url)
        self._commits: list[_Commit] = []
        self._writer = token_bytes(8)

    async def open(self) -> None:
        await self._link.open()

    async def close(self) -> None:
        await self._link.close()

    async def commit(self, changes: Sequence[Change]) -> list[bool]:
        commit = _Commit(changes)
        self._commits.append(commit)
        try:
            await self._link.do(self._flush)
        finally:
            if commit in self._commits:
                self._commits.remove(commit)  # it was not sent, and must not be any more
        assert commit.applied is not None, "a flush takes all that wait"
        return commit.applied

    async def read(self, key: Key, now: float) -> Record | Tombstone | None:
        name = SEQUENCES + name_of(key)
        flat: list[bytes] = await self._link.do(lambda link: link.call("HGETALL", name))
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if not fields:
            return None
        try:
            if b"t" in fields:
                tombstone = unpack_tombstone(name, fields[b"t"])
            else:
                record = unpack_record(key, name, fields)
                if record.expires_at > now:
                    return record
                tombstone = Tombstone(EXPIRED, record.expires_at)
        except Damaged as error:
            await self._condemn(key, fields.get(b"r", b""), now, error)
            raise state_damaged() from error
        return tombstone if now < tombstone.ended_at + TOMBSTONE_SECONDS else None

    async def expire(self, now: float, most: int) -> list[Key]:
        arguments = [repr(now), most, SEQUENCES, INDEXES]
        over: list[list[bytes]] = await self._link.do(lambda link: link.run(DUE, [DUE_KEY], arguments))
        ends = []
        for member, packed in over:
            try:
                control = unpack_control(packed)
            except Damaged as error:
                await self._condemn(key_of(member), packed, now, error)
            else:
                ends.append(End(key_of(member), EXPIRED, control.expires_at, control.revision))
        applied = await self.commit(ends) if ends else []
        return [end.key for end, is_ours in zip(ends, applied, strict=True) if is_ours]

    async def count(self, model: str) -> int:
        index = index_of(name_of(("", model, "")))
        found: int = await self._link.do(lambda link: link.call("ZCARD", index))
        return found

    async def keep_secret(self, made: bytes) -> bytes | None:
        await self._link.do(lambda link: link.call("SET", SECRET_KEY, made, "NX"))
        kept: bytes = await self._link.do(lambda link: link.call("GET", SECRET_KEY))
        return kept

    async def _glance(self, names: Sequence[bytes]) -> list[Record]:
        """Records without answers, of those that are there and sound."""
        commands = [("HMGET", SEQUENCES + name, "r", "o", "h", "l") for name in names]
        replies: list[list[bytes | None]] = await self._link.do(lambda link: link.calls(commands))
        found = []
        for name, reply in zip(names, replies, strict=True):
            fields = {field: value for field, value in zip((b"r", b"o", b"h", b"l"), reply, strict=True) if value}
            try:
                found.append(unpack_moving(SEQUENCES + name, fields)[0])
            except Damaged:
                continue
        return found

    async def _flush(self, link: Link) -> None:
        """Send all commits that wait as one script."""
        commits, command = list(self._commits), Command(self._writer)
        for commit in commits:
            for change in commit.changes:
                command.add(change)
        applied = iter(await link.run(COMMIT, command.keys, command.arguments) if command.keys else ())
        for commit in commits:
            commit.applied = [bool(next(applied)) for _ in commit.changes]
        self._commits = [commit for commit in self._commits if commit.applied is None]

    async def _condemn(self, key: Key, control: bytes, now: float, error: Damaged) -> None:
        log.error("state_damaged", tenant=key[0], model=key[1], sequence_id=key[2], reason=str(error))
        await self.commit([End(key, DAMAGED, now, revision_in(control))])

    async def list(self, tenant: str, model: str, *, after: str, most: int, now: float) -> list[Record]:
        owner = owner_of(tenant, model)
        found: list[Record] = []
        index, end = index_of(owner), b"(" + owner + b"\xff"  # no UTF-8 begins with it
        last = name_of((tenant, model, after))
        while len(found) < most:
            span = ("ZRANGEBYLEX", index, b"(" + last, end, "LIMIT", 0, most - len(found))
            names: list[bytes] = await self._link.do(lambda link, span=span: link.call(*span))  # type: ignore[misc]
            if not names:
                break
            last = names[-1]
            found += [record for record in await self._glance(names) if record.expires_at > now]
        return found
