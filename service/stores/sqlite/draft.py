"""What one transaction is to write, and what is remembered of a sequence between transactions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import ceil

from service.stores.sqlite.frames import HEAD, SLOTS, Head, answer_frame, frame, head_frame, id_of


@dataclass(slots=True)
class Standing:
    """What is remembered of a sequence: where its rows are, and what the head says without the state."""

    number: int
    revision: int
    first_revision: int
    next_answer: int
    last_used_at: float
    ttl_seconds: float

    @classmethod
    def of(cls, number: int, head: Head) -> Standing:
        return cls(number, head.revision, head.first_revision, head.next_answer, head.last_used_at, head.ttl_seconds)

    @property
    def expires_at(self) -> float:
        return self.last_used_at + self.ttl_seconds


@dataclass(slots=True)
class Draft:
    """What one transaction is to write. A later change of the same sequence goes on from an earlier one."""

    order: int
    rows: dict[int, bytes] = field(default_factory=dict)
    names: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    wiped: set[int] = field(default_factory=set)
    gone: set[bytes] = field(default_factory=set)
    counted: Counter[str] = field(default_factory=Counter)

    def put(self, number: int, slot: int, body: bytes) -> None:
        row_id = id_of(number, slot)
        self.rows[row_id] = frame(row_id, self.order, body)

    def put_head(self, number: int, head: Head) -> None:
        row_id = id_of(number, HEAD)
        self.rows[row_id] = head_frame(row_id, self.order, head)

    def put_answer(self, number: int, slot: int, revision: int, answer: bytes) -> None:
        row_id = id_of(number, slot)
        self.rows[row_id] = answer_frame(row_id, self.order, revision, answer)

    def put_name(self, name: bytes, number: int, at: float, *, dead: bool) -> None:
        self.gone.discard(name)
        self.names[name] = number, ceil(at), dead

    def wipe(self, number: int) -> None:
        self.wiped.add(number)
        for slot in SLOTS:
            self.rows.pop(id_of(number, slot), None)
