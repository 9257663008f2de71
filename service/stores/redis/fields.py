"""Changes as the scripts take them, and records out of the fields of a hash."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import structlog

from service.stores.record import Damaged, model_in, name_of, pack_origin, seal, unpack_origin, unseal
from service.stores.store import (
    NUM_ANSWERS,
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

SEQUENCES, INDEXES, DUE_KEY = b"carousel:s:", b"carousel:i:", b"carousel:due"
"""What the keys of sequences and of the names of a model's begin with; the names by when to look at them."""

SECRET_KEY = b"carousel:token-key"
"""Of the secret that all replicas share."""

_CONTROL = struct.Struct("<QBdd")
_HEAD = struct.Struct("<8sQQ")  # who wrote it, revision, step
_REVISION, _TIME = struct.Struct("<Q"), struct.Struct("<d")


class Control(NamedTuple):
    """What the scripts compare."""

    revision: int
    next_answer: int
    """Place in the ring."""
    ttl_seconds: float
    last_used_at: float

    @property
    def expires_at(self) -> float:
        return self.last_used_at + self.ttl_seconds


class Command:
    """The keys and arguments of one run of COMMIT."""

    def __init__(self, writer: bytes) -> None:
        """`writer` tells processes apart: two that come to the same state are still two, and one of them is first."""
        self._writer = writer
        self.keys: list[bytes] = []
        self.arguments: list[Any] = []

    def add(self, change: Change) -> None:
        match change:
            case Advance(key, revision):
                name = SEQUENCES + name_of(key)
                self.keys.append(name)
                self.arguments += ("advance", _REVISION.pack(revision), *self._moved(name, change))
            case Begin(record):
                self._add_record(record, "begin", _TIME.pack(record.created_at))
            case Replace(record, revision):
                self._add_record(record, "replace", _REVISION.pack(revision))
            case Touch(key, revision, last_used_at):
                name = SEQUENCES + name_of(key)
                self.keys.append(name)
                self.arguments += ("touch", _REVISION.pack(revision), seal(_TIME.pack(last_used_at), name + b"l"))
            case End(key, reason, ended_at, at):
                member = name_of(key)
                name = SEQUENCES + member
                self.keys += (name, index_of(member), DUE_KEY)
                tombstone = seal(_TIME.pack(ended_at) + reason.encode(), name + b"t")
                self.arguments += ("done", b"" if at is None else _REVISION.pack(at), tombstone, member)
            case Forget(key, revision):
                member = name_of(key)
                self.keys += (SEQUENCES + member, index_of(member), DUE_KEY)
                self.arguments += ("forget", _REVISION.pack(revision), member)

    def _moved(self, name: bytes, change: Advance) -> Iterator[bytes]:
        yield self._head(name, change.new_revision, change.step, change.state)
        yield seal(_TIME.pack(change.last_used_at), name + b"l")
        yield b"" if change.answer is None else _answer(name, change.new_revision, change.answer)

    def _add_record(self, record: Record, what: str, condition: bytes) -> None:
        member, answers = name_of(record.key), record.answers[-NUM_ANSWERS:]
        name = SEQUENCES + member
        self.keys += (name, index_of(member), DUE_KEY)
        place = len(answers) % NUM_ANSWERS
        self.arguments += (
            what,
            condition,
            _CONTROL.pack(record.revision, place, record.ttl_seconds, record.last_used_at),
            seal(pack_origin(member, record), name + b"o"),
            self._head(name, record.revision, record.step, record.state),
            seal(_TIME.pack(record.last_used_at), name + b"l"),
            member,
            repr(record.expires_at),
            len(answers),
        )
        first = record.revision - len(answers) + 1
        self.arguments += (_answer(name, max(0, revision), answer) for revision, answer in enumerate(answers, first))

    def _head(self, name: bytes, revision: int, step: int, state: bytes) -> bytes:
        return seal(_HEAD.pack(self._writer, revision, step) + state, name + b"h")


def index_of(member: bytes) -> bytes:
    """The key that holds the names of all sequences of a model."""
    return INDEXES + model_in(member)


def _answer(name: bytes, revision: int, answer: bytes) -> bytes:
    return seal(_REVISION.pack(revision) + answer, name + b"a")


def unpack_control(packed: bytes) -> Control:
    """Raises Damaged."""
    if len(packed) != _CONTROL.size:
        raise Damaged("what the scripts compare cannot be read")
    return Control(*_CONTROL.unpack(packed))


def revision_in(control: bytes) -> int | None:
    """What the scripts take for the revision of a record, be it damaged or not."""
    return _REVISION.unpack_from(control)[0] if len(control) >= _REVISION.size else None


def unpack_tombstone(name: bytes, sealed: bytes) -> Tombstone:
    body = unseal(sealed, name + b"t")
    return Tombstone(body[_TIME.size :].decode(), _TIME.unpack_from(body)[0])


def unpack_record(key: Key, name: bytes, fields: dict[bytes, bytes]) -> Record:
    """With its answers, as far as they are sound: without one nothing but its replay is lost. Raises Damaged."""
    record, control = unpack_moving(name, fields)
    found = sorted(_unpack_answers(key, name, fields))
    record.answers = [answer for _, answer, _ in found]
    num_kept = sum(b"%d" % place in fields for place in range(NUM_ANSWERS))
    place = (found[-1][2] + 1) % NUM_ANSWERS if len(found) == NUM_ANSWERS else num_kept % NUM_ANSWERS
    if len(found) < num_kept == NUM_ANSWERS and control.next_answer < NUM_ANSWERS:
        place = control.next_answer  # the newest may be the one that is damaged
    if control.next_answer != place:
        raise Damaged("the answers do not fit what the scripts compare")
    return record


def unpack_moving(name: bytes, fields: dict[bytes, bytes]) -> tuple[Record, Control]:
    """A record without answers, and what the scripts compare of it. Raises Damaged."""
    try:
        origin, head, lease = (unseal(fields[field], name + field) for field in (b"o", b"h", b"l"))
        control = unpack_control(fields[b"r"])
    except KeyError as error:
        raise Damaged("a part is missing") from error
    record = unpack_origin(origin)
    _, record.revision, record.step = _HEAD.unpack_from(head)
    record.state = head[_HEAD.size :]
    (record.last_used_at,) = _TIME.unpack(lease)
    if control != Control(record.revision, control.next_answer, record.ttl_seconds, record.last_used_at):
        raise Damaged("the record does not fit what the scripts compare")
    return record, control


def _unpack_answers(key: Key, name: bytes, fields: dict[bytes, bytes]) -> Iterator[tuple[int, bytes, int]]:
    """Revision, answer and place in the ring."""
    for place in range(NUM_ANSWERS):
        if (sealed := fields.get(b"%d" % place)) is None:
            continue
        try:
            body = unseal(sealed, name + b"a")
        except Damaged as error:
            log.error("answer_damaged", tenant=key[0], model=key[1], sequence_id=key[2], reason=str(error))
        else:
            yield _REVISION.unpack_from(body)[0], body[_REVISION.size :], place
