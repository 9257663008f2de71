"""Records out of the rows of a file, as they were committed."""

from __future__ import annotations

import structlog

from service.stores.record import Damaged, key_of, name_of, owner_of, unpack_origin
from service.stores.sqlite.file import File
from service.stores.sqlite.frames import (
    FIRST_ANSWER,
    HEAD,
    ORIGIN,
    TOMBSTONE,
    Head,
    body_of,
    id_of,
    unpack_answer,
    unpack_head,
    unpack_tombstone,
)
from service.stores.store import Key, Record, Tombstone

log = structlog.get_logger(__name__)


def read_row(file: File, number: int, slot: int) -> bytes:
    """What a row holds. Raises Damaged."""
    row_id = id_of(number, slot)
    return body_of(file.frame(row_id), row_id)


def read_tombstone(file: File, number: int) -> Tombstone:
    """Raises Damaged."""
    _, ended_at, reason = unpack_tombstone(read_row(file, number, TOMBSTONE))
    return Tombstone(reason, ended_at)


def read_record(file: File, key: Key, number: int) -> Record:
    """Raises Damaged. A damaged answer is left out: nothing but its replay is lost."""
    head, *answers = file.frames(number)
    record = _assemble(file, key, number, unpack_head(body_of(head, id_of(number, HEAD))))
    kept: list[tuple[int, bytes]] = []
    for slot, sealed in enumerate(answers, FIRST_ANSWER):
        if sealed is None:
            continue
        try:
            kept.append(unpack_answer(body_of(sealed, id_of(number, slot))))
        except Damaged as error:
            log.error("answer_damaged", tenant=key[0], model=key[1], sequence_id=key[2], reason=str(error))
    record.answers = [answer for _, answer in sorted(kept)]
    return record


def list_records(file: File, tenant: str, model: str, after: str, most: int, now: float) -> list[Record]:
    """Live ones by id, without answers. What is damaged is left out."""
    end = owner_of(tenant, model) + b"\xff"  # no UTF-8 begins with it
    name = name_of((tenant, model, after))
    found: list[Record] = []
    while len(found) < most and (page := file.names_after(name, end, most - len(found))):
        for name, number in page:
            try:
                record = _assemble(file, key_of(name), number, unpack_head(read_row(file, number, HEAD)))
            except Damaged:
                continue
            if record.expires_at > now:
                found.append(record)
    return found


def _assemble(file: File, key: Key, number: int, head: Head) -> Record:
    record = unpack_origin(read_row(file, number, ORIGIN))
    if record.key != key or record.revision != head.first_revision:
        raise Damaged("the record of another sequence stands here")
    record.revision, record.step, record.state = head.revision, head.step, head.state
    record.last_used_at = head.last_used_at
    return record
