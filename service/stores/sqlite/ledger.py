"""Changes -> the rows that they come to, and records out of rows. All of it is for the thread that owns the file.

What a change has to know of its sequence is remembered, so that a step reads nothing and writes two rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import structlog

from service.stores.record import Damaged, key_of, name_of, pack_origin, state_damaged
from service.stores.sqlite.draft import Draft, Standing
from service.stores.sqlite.file import File
from service.stores.sqlite.frames import (
    FIRST_ANSWER,
    HEAD,
    OPENING_BITS,
    ORIGIN,
    TOMBSTONE,
    WITNESS,
    Head,
    body_of,
    id_of,
    pack_tombstone,
    unpack_answer,
    unpack_head,
    unpack_tombstone,
)
from service.stores.sqlite.reading import list_records, read_record, read_row, read_tombstone
from service.stores.store import (
    DAMAGED,
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

log = structlog.get_logger(__name__)

MAX_REMEMBERED = 65_536


class Ledger:
    """The sequences of one file."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._known: dict[Key, Standing] = {}
        self._last_number = file.last_number()
        self._order = file.opening << OPENING_BITS
        self._counts = Counter(key_of(name)[1] for name in file.live_names())

    # -- write -------------------------------------------------------------------------------------------------------

    def commit(self, changes: Sequence[Change]) -> list[bool]:
        """One transaction. Raises what the file does, and nothing of it was applied then."""
        draft = self._draft()
        try:
            applied = [self._try(change, draft) for change in changes]
            self._write(draft)
        except BaseException:
            self._known.clear()
            raise
        if len(self._known) > MAX_REMEMBERED:
            for key in list(self._known)[: MAX_REMEMBERED // 2]:
                del self._known[key]
        return applied

    def expire(self, now: float, most: int) -> list[Key]:
        draft = self._draft()
        ended: list[Key] = []
        for name, number, dead in self._file.due(now, most):
            if dead:
                draft.wipe(number)
                draft.gone.add(name)
                continue
            key = key_of(name)
            try:
                standing = self._find(key, draft)
            except Damaged as error:
                self._condemn(key, now, draft, error)
                continue
            if standing is None:
                continue
            if standing.expires_at > now:
                draft.put_name(name, number, standing.expires_at, dead=False)
                continue
            self._bury(key, number, Tombstone(EXPIRED, standing.expires_at), draft, was_live=True)
            ended.append(key)
        self._write(draft)
        return ended

    # -- read --------------------------------------------------------------------------------------------------------

    def read(self, key: Key, now: float) -> Record | Tombstone | None:
        """Raises StateDamaged."""
        found = self._file.find(name_of(key))
        if found is None:
            return None
        number, dead = found
        try:
            if dead:
                tombstone = read_tombstone(self._file, number)
            else:
                record = read_record(self._file, key, number)
                if record.expires_at > now:
                    return record
                tombstone = Tombstone(EXPIRED, record.expires_at)
        except Damaged as error:
            draft = self._draft()
            self._condemn(key, now, draft, error)
            self._write(draft)
            raise state_damaged() from error
        return tombstone if now < tombstone.ended_at + TOMBSTONE_SECONDS else None

    def count(self, model: str) -> int:
        return self._counts[model]

    # -- each change -------------------------------------------------------------------------------------------------

    def _try(self, change: Change, draft: Draft) -> bool:
        try:
            return self._apply(change, draft)
        except Damaged as error:
            key, at = _key_and_time(change)
            self._condemn(key, at, draft, error)
            return False

    def _apply(self, change: Change, draft: Draft) -> bool:
        match change:
            case Advance():
                return self._advance(change, draft)
            case Begin(record):
                return self._begin(record, draft)
            case Replace(record, revision):
                standing = self._find(record.key, draft)
                if standing is None or standing.revision != revision:
                    return standing is not None and standing.revision == record.revision
                self._put(record, standing.number, draft)
            case Touch(key, revision, last_used_at):
                standing = self._find(key, draft)
                if standing is None or standing.revision != revision:
                    return False
                head = self._head(standing.number, draft)
                head.last_used_at = standing.last_used_at = last_used_at
                draft.put_head(standing.number, head)
            case End():
                return self._end(change, draft)
            case Forget(key, revision):
                standing = self._find(key, draft)
                if standing is None or standing.revision != revision:
                    return False
                del self._known[key]
                draft.wipe(standing.number)
                draft.names.pop(name_of(key), None)
                draft.gone.add(name_of(key))
                draft.counted[key[1]] -= 1
        return True

    def _advance(self, change: Advance, draft: Draft) -> bool:
        standing = self._known.get(change.key) or self._find(change.key, draft)
        if standing is None:
            return False
        if standing.revision != change.revision:
            return standing.revision == change.new_revision and self._is_repeat(standing, change, draft)
        number, answer = standing.number, change.answer
        standing.revision, standing.last_used_at = change.new_revision, change.last_used_at
        if answer is None:
            draft.put_answer(number, WITNESS, change.new_revision, b"")
        else:
            draft.put_answer(number, _slot_of(standing.next_answer), change.new_revision, answer)
            standing.next_answer = (standing.next_answer + 1) % NUM_ANSWERS
        head = Head(
            change.new_revision,
            standing.first_revision,
            change.step,
            change.last_used_at,
            standing.ttl_seconds,
            standing.next_answer,
            change.state,
        )
        draft.put_head(number, head)
        return True

    def _is_repeat(self, standing: Standing, change: Advance, draft: Draft) -> bool:
        """Is what stands there this very change, at whatever time?"""
        head = self._head(standing.number, draft)
        if (head.step, head.state) != (change.step, change.state):
            return False
        if change.answer is None:
            return True
        newest = unpack_answer(self._body(standing.number, _slot_of(head.next_answer - 1), draft))
        return newest == (change.new_revision, change.answer)

    def _begin(self, record: Record, draft: Draft) -> bool:
        standing = self._find(record.key, draft)
        if standing is not None:
            if standing.expires_at > record.created_at:
                return standing.revision == record.revision
            self._put(record, standing.number, draft)
            return True
        draft.counted[record.key[1]] += 1
        self._put(record, self._number_of(record.key, draft), draft)
        return True

    def _end(self, change: End, draft: Draft) -> bool:
        tombstone = Tombstone(change.reason, change.ended_at)
        standing = self._find(change.key, draft)
        if change.revision is not None and (standing is None or standing.revision != change.revision):
            return standing is None and self._standing_tombstone(change.key, draft) == tombstone
        number = standing.number if standing else self._number_of(change.key, draft)
        self._bury(change.key, number, tombstone, draft, was_live=standing is not None)
        return True

    # -- rows --------------------------------------------------------------------------------------------------------

    def _put(self, record: Record, number: int, draft: Draft) -> None:
        """The whole record, in place of whatever the number had."""
        if number <= self._last_number:
            draft.wipe(number)
        self._last_number = max(self._last_number, number)
        name, answers = name_of(record.key), record.answers[-NUM_ANSWERS:]
        for place, answer in enumerate(answers, 1 - len(answers)):
            draft.put_answer(number, _slot_of(place - 1), max(0, record.revision + place), answer)
        draft.put_answer(number, WITNESS, record.revision, b"")
        draft.put(number, ORIGIN, pack_origin(name, record))
        revision = record.revision
        head = Head(revision, revision, record.step, record.last_used_at, record.ttl_seconds, 0, record.state)
        draft.put_head(number, head)
        draft.put_name(name, number, record.expires_at, dead=False)
        self._known[record.key] = Standing.of(number, head)

    def _bury(self, key: Key, number: int, tombstone: Tombstone, draft: Draft, *, was_live: bool) -> None:
        name = name_of(key)
        if number <= self._last_number:
            draft.wipe(number)
        self._last_number = max(self._last_number, number)
        draft.put(number, TOMBSTONE, pack_tombstone(name, tombstone.ended_at, tombstone.reason))
        draft.put_name(name, number, tombstone.ended_at + TOMBSTONE_SECONDS, dead=True)
        draft.counted[key[1]] -= was_live
        self._known.pop(key, None)

    def _condemn(self, key: Key, at: float, draft: Draft, error: Damaged) -> None:
        log.error("state_damaged", tenant=key[0], model=key[1], sequence_id=key[2], reason=str(error))
        self._bury(key, self._number_of(key, draft), Tombstone(DAMAGED, at), draft, was_live=True)

    def _find(self, key: Key, draft: Draft) -> Standing | None:
        """The live sequence of that key. Raises Damaged."""
        if key in self._known:
            return self._known[key]
        name = name_of(key)
        if name in draft.gone or name in draft.names:
            return None
        found = self._file.find(name)
        if found is None or found[1]:
            return None
        number = found[0]
        standing = self._known[key] = Standing.of(number, self._head(number, draft))
        return standing

    def _head(self, number: int, draft: Draft) -> Head:
        return unpack_head(self._body(number, HEAD, draft))

    def _body(self, number: int, slot: int, draft: Draft) -> bytes:
        """What a row holds by now. Raises Damaged."""
        row_id = id_of(number, slot)
        drafted = draft.rows.get(row_id)
        return body_of(drafted, row_id) if drafted else read_row(self._file, number, slot)

    def _standing_tombstone(self, key: Key, draft: Draft) -> Tombstone | None:
        name = name_of(key)
        number, _, dead = draft.names.get(name, (0, 0, False))
        if name not in draft.names:
            number, dead = self._file.find(name) or (0, False)
        if not dead or name in draft.gone:
            return None
        _, ended_at, reason = unpack_tombstone(self._body(number, TOMBSTONE, draft))
        return Tombstone(reason, ended_at)

    def _number_of(self, key: Key, draft: Draft) -> int:
        """Of a name that is known, or the next that is free."""
        name = name_of(key)
        if name in draft.names:
            return draft.names[name][0]
        found = self._file.find(name)
        return self._last_number + 1 if found is None else found[0]

    def _draft(self) -> Draft:
        self._order += 1
        return Draft(self._order)

    def _write(self, draft: Draft) -> None:
        names = [(name, *fields) for name, fields in draft.names.items()]
        self._file.write(list(draft.rows.items()), names, draft.wiped, draft.gone)
        self._counts.update(draft.counted)

    def list(self, tenant: str, model: str, after: str, most: int, now: float) -> list[Record]:
        """Without answers. What is damaged is left out."""
        return list_records(self._file, tenant, model, after, most, now)


def _slot_of(place: int) -> int:
    return FIRST_ANSWER + place % NUM_ANSWERS


def _key_and_time(change: Change) -> tuple[Key, float]:
    match change:
        case Begin(record) | Replace(record):
            return record.key, record.last_used_at
        case Advance(key, last_used_at=at) | Touch(key, last_used_at=at) | End(key, ended_at=at):
            return key, at
        case Forget(key):
            return key, 0.0
