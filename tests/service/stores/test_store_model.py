"""Any order of changes leaves in each store what it leaves in a dictionary."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from service.stores.opening import open_store
from service.stores.store import (
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
    new_revision,
)
from tests.service.stores.records import NOW, advance, advanced, record

KEYS: list[Key] = [(tenant, "pump", name) for tenant in ("a", "b") for name in ("x", "y", "z")]
KEY = st.sampled_from(KEYS)
BYTES = st.binary(max_size=40) | st.just(b"\x7f" * 5000)
STALE = 12345


class Plain:
    """What the changes mean."""

    def __init__(self) -> None:
        self.stands: dict[Key, Record | Tombstone] = {}

    def live(self, key: Key) -> Record | None:
        found = self.stands.get(key)
        return found if isinstance(found, Record) else None

    def apply(self, change: Change) -> bool:
        key = change.record.key if isinstance(change, Begin | Replace) else change.key
        live = self.live(key)
        match change:
            case Begin(new):
                if live and live.expires_at > new.created_at:
                    return False
                self.stands[key] = new
            case End(_, reason, ended_at, revision):
                if revision is not None and (live is None or live.revision != revision):
                    return self.stands.get(key) == Tombstone(reason, ended_at)  # it repeats the one that ended it
                self.stands[key] = Tombstone(reason, ended_at)
            case _ if live is None or live.revision != change.revision:
                return False
            case Advance():
                self.stands[key] = advanced(live, change)
            case Replace(new):
                self.stands[key] = new
            case Touch(last_used_at=at):
                self.stands[key] = replace(live, last_used_at=at)
            case Forget():
                del self.stands[key]
        return True

    def expire(self, now: float) -> set[Key]:
        over = {key for key in self.stands if (live := self.live(key)) and live.expires_at <= now}
        for key in over:
            live = self.live(key)
            assert live is not None
            self.stands[key] = Tombstone("expired", live.expires_at)
        return over

    def read(self, key: Key, now: float) -> Record | Tombstone | None:
        found = self.stands.get(key)
        if isinstance(found, Record) and found.expires_at <= now:
            found = Tombstone("expired", found.expires_at)
        return None if isinstance(found, Tombstone) and found.ended_at + TOMBSTONE_SECONDS <= now else found


class Machine(RuleBasedStateMachine):
    setting = "memory"
    can_restart = False

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.plain, self.now, self.changes = Plain(), NOW, list[Change]()
        self.open()

    def open(self) -> None:
        self.store = open_store(self.setting)
        self.run(self.store.open())

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()

    @rule(key=KEY, state=BYTES, answers=st.lists(BYTES, max_size=3), ttl=st.sampled_from([5.0, 90.0, 5000.0]))
    def begin(self, key: Key, state: bytes, answers: list[bytes], ttl: float) -> None:
        self.changes.append(Begin(self.record(key, state, answers, ttl)))

    @rule(key=KEY, state=BYTES, answer=st.none() | BYTES, is_stale=st.booleans())
    def advance(self, key: Key, state: bytes, answer: bytes | None, is_stale: bool) -> None:
        if live := self.latest().live(key):
            known = replace(live, revision=STALE) if is_stale else live
            self.changes.append(advance(known, answer, state=state, last_used_at=self.now))

    @rule(key=KEY, state=BYTES, ttl=st.sampled_from([3.0, 60.0]))
    def replace(self, key: Key, state: bytes, ttl: float) -> None:
        live = self.latest().live(key)
        self.changes.append(Replace(self.record(key, state, [b"new"], ttl), live.revision if live else STALE))

    @rule(key=KEY, kind=st.sampled_from(["touch", "end", "end whatever stands", "forget"]))
    def other(self, key: Key, kind: str) -> None:
        live = self.latest().live(key)
        revision = live.revision if live else STALE
        if kind == "touch":
            self.changes.append(Touch(key, revision, self.now))
        elif kind == "forget":
            self.changes.append(Forget(key, revision))
        else:
            self.changes.append(End(key, "deleted", self.now, revision if kind == "end" else None))

    @rule(repeat=st.booleans())
    def commit(self, repeat: bool) -> None:
        changes, self.changes = self.changes, []
        expected = [self.plain.apply(change) for change in changes]
        assert self.run(self.store.commit(changes)) == expected
        if repeat and len(changes) == 1 and expected == [True] and not isinstance(changes[0], Forget | Touch):
            assert self.run(self.store.commit(changes)) == [True]

    @rule(seconds=st.sampled_from([1.0, 4.0, 70.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        if not self.changes:
            assert set(self.run(self.store.expire(self.now, 1000))) == self.plain.expire(self.now)

    @rule()
    def restart(self) -> None:
        if self.can_restart and not self.changes:
            self.run(self.store.close())
            self.open()

    @invariant()
    def reads_are_the_same(self) -> None:
        if self.changes:
            return  # not committed yet
        reads = {key: self.plain.read(key, self.now) for key in KEYS}
        assert {key: self.run(self.store.read(key, self.now)) for key in KEYS} == reads
        for tenant in ("a", "b"):
            listed = self.run(self.store.list(tenant, "pump", after="x", most=9, now=self.now))
            live = [key for key, found in reads.items() if isinstance(found, Record) and key[::2] > (tenant, "x")]
            assert [found.key for found in listed] == [key for key in live if key[0] == tenant]

    def latest(self) -> Plain:
        """As it will stand once the changes are committed."""
        plain = Plain()
        plain.stands = dict(self.plain.stands)
        for change in self.changes:
            plain.apply(change)
        return plain

    def record(self, key: Key, state: bytes, answers: list[bytes], ttl: float) -> Record:
        times = {"created_at": self.now, "last_used_at": self.now, "ttl_seconds": ttl}
        return record(key, new_revision(), state=state, answers=answers, **times)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def machine(request: pytest.FixtureRequest) -> Iterator[type[Machine]]:
    with tempfile.TemporaryDirectory() as folder:

        class OfOneStore(Machine):
            can_restart = request.param != "memory"

            def __init__(self) -> None:
                if request.param == "sqlite":
                    for file in Path(folder).iterdir():
                        file.unlink()
                    self.setting = f"sqlite:///{folder}/state.db"
                elif request.param == "redis":
                    server = request.getfixturevalue("redis_server")
                    server.empty()
                    self.setting = server.url
                super().__init__()

        yield OfOneStore


def test_every_store_does_what_a_dictionary_does(machine: type[Machine]):
    usual = settings(max_examples=40, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(machine, settings=settings(usual, suppress_health_check=list(HealthCheck)))
