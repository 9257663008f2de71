"""What a store promises, and the plain data that goes in and out. Knows no store in particular.

A record is what is committed of one sequence. Whoever changes it names the revision that he knows it at: a random
number when the sequence begins or is replaced, one more at each advance. So a change is applied to exactly the state
it was made for, and never to another sequence that had the same id before or after.

State and answers are bytes here: only the caller knows what is in them. Times come in as arguments, seconds since the
epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import randbits
from typing import Protocol

from service.errors import StoreUnavailable

Key = tuple[str, str, str]
"""(tenant, model name, sequence id)"""

NUM_ANSWERS = 16
"""Kept of each sequence; the oldest makes room for the newest."""

TOMBSTONE_SECONDS = 3600.0
"""How long it is known that a sequence ended, and why."""

EXPIRED, DELETED, VERSION_UNLOADED, DAMAGED = "expired", "deleted", "version_unloaded", "damaged"
"""Reasons of a tombstone."""


def store_unavailable() -> StoreUnavailable:
    """What callers are told while the store is away; the log has the reason."""
    return StoreUnavailable("The store of states is away just now, and nothing was changed. Try again.", retry_after=1)


def new_revision() -> int:
    """The revision of a sequence that begins or is replaced: unlike any that the id ever had."""
    return randbits(62)


@dataclass(slots=True)
class Record:
    """What is committed of one sequence."""

    key: Key
    version: int
    fingerprint: str
    """Of the model file that the state belongs to."""
    revision: int
    step: int
    state: bytes
    """The row's tensors, back to back."""
    answers: list[bytes]
    """The last NUM_ANSWERS at most, oldest first, each as the caller packed it."""
    created_at: float
    last_used_at: float
    ttl_seconds: float

    @property
    def expires_at(self) -> float:
        return self.last_used_at + self.ttl_seconds


@dataclass(slots=True)
class Tombstone:
    """What is left of a sequence that ended, for TOMBSTONE_SECONDS."""

    reason: str
    ended_at: float


@dataclass(slots=True)
class Begin:
    """A new sequence. Only if there is none of this key, or its lease was over at `record.created_at`."""

    record: Record


@dataclass(slots=True)
class Advance:
    """The sequence moved on. Only if it stands at `revision`; `answer` joins the others."""

    key: Key
    revision: int
    new_revision: int
    step: int
    state: bytes
    answer: bytes | None
    last_used_at: float


@dataclass(slots=True)
class Replace:
    """Another record in place of this one, answers and all. Only if it stands at `revision`."""

    record: Record
    revision: int


@dataclass(slots=True)
class Touch:
    """The lease begins anew. Only if it stands at `revision`."""

    key: Key
    revision: int
    last_used_at: float


@dataclass(slots=True)
class End:
    """The sequence becomes a tombstone. Only if it stands at `revision`; None: whatever stands there, even nothing."""

    key: Key
    reason: str
    ended_at: float
    revision: int | None = None


@dataclass(slots=True)
class Forget:
    """The record goes without a trace. Only if it stands at `revision`.

    For a store that is not `write_through`: its sequence is held elsewhere again, and what is kept here grows old.
    """

    key: Key
    revision: int


Change = Begin | Advance | Replace | Touch | End | Forget


class Store(Protocol):
    """Where committed state lives. All methods but `open` raise StoreUnavailable while the store is away."""

    write_through: bool
    """Every committed step is written here. False: the store holds only what the caller puts there."""
    shared: bool
    """Other processes may write here too."""

    async def open(self) -> None:
        """Raises SettingsInvalid when it cannot be used at all; a store that is only away may come back later."""

    async def close(self) -> None:
        """Write what there is to write, and let go."""

    async def commit(self, changes: Sequence[Change]) -> list[bool]:
        """Apply the changes in their order, all that can be; True for each that was, False where its condition failed.

        They are durable, as far as the store ever is, when this returns. After StoreUnavailable none was applied, or
        all were and the reply is lost: to commit the same changes again is harmless, and those that stand already
        count as applied.
        """
        ...

    async def read(self, key: Key, now: float) -> Record | Tombstone | None:
        """What stands there at `now`. A lease that is over is a tombstone already.

        Raises StateDamaged if what is stored is not what was written; from then on its tombstone is there.
        """
        ...

    async def expire(self, now: float, most: int) -> list[Key]:
        """End sequences whose lease is over and drop old tombstones, looking at about `most`; the keys that ended now.

        Always empty where the store does it by itself.
        """
        ...

    async def count(self, model: str) -> int:
        """Live sequences of a model, over all tenants; those whose end was not noticed yet may be among them."""
        ...

    async def keep_secret(self, made: bytes) -> bytes | None:
        """The secret that is kept beside this store: `made`, unless there is one. None: nothing can be kept here."""
        ...

    async def list(self, tenant: str, model: str, *, after: str, most: int, now: float) -> list[Record]:
        """At most `most` live sequences of a tenant, by id, those after `after`. State and answers may be left out."""
        ...
