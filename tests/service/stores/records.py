"""Records and changes, short to write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.stores.store import Advance, Key, Record

NOW = 1_700_000_000.0
TTL = 100.0
KEY: Key = ("acme", "pump", "p-1")


def record(key: Key = KEY, revision: int = 1000, **fields: Any) -> Record:
    usual: dict[str, Any] = {
        "version": 3,
        "fingerprint": "ab" * 32,
        "step": 0,
        "state": b"state at 0",
        "answers": [],
        "created_at": NOW,
        "last_used_at": NOW,
        "ttl_seconds": TTL,
    }
    return Record(key, revision=revision, **{**usual, **fields})


def advance(before: Record, answer: bytes | None = b"answer", **fields: Any) -> Advance:
    """One step on from `before`."""
    step = before.step + 1
    usual: dict[str, Any] = {"step": step, "state": b"state at %d" % step, "last_used_at": before.last_used_at + 1}
    return Advance(before.key, before.revision, before.revision + 1, answer=answer, **{**usual, **fields})


def advanced(before: Record, change: Advance) -> Record:
    """What stands after `change`."""
    answers = before.answers if change.answer is None else [*before.answers, change.answer][-16:]
    return replace(
        before,
        revision=change.new_revision,
        step=change.step,
        state=change.state,
        answers=answers,
        last_used_at=change.last_used_at,
    )
