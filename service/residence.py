"""Sequences move in and out of the arena: from nothing, from a record, back to the store when others need the room."""

from __future__ import annotations

from collections.abc import Callable

from service.commits import Committer, pack_state, record_of, unpack_state
from service.engine.request import State
from service.errors import ModelNotFound, ModelNotReady, NoRoom, SequenceGone, Stale, StateDamaged, VersionNotFound
from service.leases import Leases
from service.registry import LoadedModel, Registry
from service.replay import Replays
from service.residents import Residents
from service.sequence import Sequence, gone
from service.settings import Settings
from service.stores.store import DAMAGED, DELETED, VERSION_UNLOADED, Begin, Forget, Key, Record, Store, Tombstone, Touch


class Residence:
    """Every sequence that has a row in this process, and when its lease is to be looked at."""

    def __init__(self, registry: Registry, settings: Settings, store: Store, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._store = store
        self._clock = clock
        self._commit = Committer(store, clock)
        room = settings.num_resident
        self.residents = Residents(room, evicts=store.write_through or room < settings.max_sequences)
        self._leases: Leases[Sequence] = Leases()

    def move_in(
        self,
        key: Key,
        model: LoadedModel,
        state: State | None,
        step: int,
        ttl_seconds: float,
        *,
        used_at: float | None = None,
        tentative: bool = False,
    ) -> Sequence:
        """Give a sequence a row. `make_room` was asked just before. `used_at` is now unless told. Raises NoRoom."""
        now = self._clock() if used_at is None else used_at
        sequence = Sequence(key, model, model.engine.open(state, step), ttl_seconds, now, now, tentative)
        if self._store.write_through:
            model.engine.commit = self._commit
        self.residents.add(sequence)
        self.watch(sequence)
        return sequence

    def move_out(self, sequence: Sequence) -> None:
        """Give back all that it held here; it may still be in the store."""
        self.residents.remove(sequence)
        self._leases.forget(sequence, sequence.watched)
        sequence.left_at = sequence.step
        sequence.replays = None
        sequence.model.engine.close(sequence.slot)

    async def make_room(self, model: LoadedModel) -> None:
        """See that one more sequence finds a row. Raises NoRoom when all that are here have calls under way."""
        idle = self.residents.to_evict(model)
        if not idle and self.residents.is_full(model):
            raise NoRoom(
                f"All rows of {model.name!r} are busy. End sequences that are done, or try again later.", retry_after=1
            )
        for sequence in idle:
            if not self._store.write_through:  # a store in this process's own memory: nothing happens in between
                await self._store.commit([Begin(self._record(sequence))])
            self.move_out(sequence)

    def has_lost_its_version(self, record: Record) -> bool:
        """Did the sequence end with its model version?"""
        try:
            self._model_of(record)
        except SequenceGone:
            return True
        except ModelNotReady:
            return False
        return False

    async def revive(self, record: Record) -> Sequence:
        """The sequence of a record gets a row. Raises SequenceGone when its model version is, ModelNotReady, NoRoom."""
        model = self._model_of(record)
        state = unpack_state(record.state, model.spec)
        await self.make_room(model)
        if sequence := self.residents.find(record.key):
            return sequence  # another call was faster
        sequence = self.move_in(record.key, model, state, record.step, record.ttl_seconds, used_at=record.last_used_at)
        sequence.created_at, sequence.revision = record.created_at, record.revision
        sequence.replays = Replays(record.answers) if record.answers else None
        if not self._store.write_through:
            await self._store.commit([Forget(record.key, record.revision)])
        return sequence

    async def read_anew(self, sequence: Sequence) -> None:
        """Take over what others committed of a sequence. It must be quiet.

        Raises SequenceGone if they ended it; Stale, with the row given up, if it is to be found anew.
        """
        found = await self._read(sequence.key)
        if isinstance(found, Record) and found.revision == sequence.revision:
            sequence.last_used_at = found.last_used_at
            return
        if sequence.tentative and not isinstance(found, Record):
            return  # nobody began it meanwhile
        model = sequence.model
        if isinstance(found, Record) and (found.version, found.fingerprint) == (model.version, model.fingerprint):
            model.engine.write(sequence.slot, unpack_state(found.state, model.spec), found.step)
            sequence.revision, sequence.created_at = found.revision, found.created_at
            sequence.ttl_seconds, sequence.last_used_at = found.ttl_seconds, found.last_used_at
            sequence.replays = Replays(found.answers) if found.answers else None
            sequence.tentative = False
            return
        if not isinstance(found, Record):
            sequence.end_reason = found.reason if found else DELETED
        self.move_out(sequence)
        raise gone(sequence.end_reason) if sequence.end_reason else Stale("Another sequence took its place.")

    async def _read(self, key: Key) -> Record | Tombstone | None:
        now = self._clock()
        try:
            return await self._store.read(key, now)
        except StateDamaged:
            return Tombstone(DAMAGED, now)

    def watch(self, sequence: Sequence) -> None:
        """Look at its lease when that may be over."""
        sequence.watched = self._leases.watch(sequence, max(sequence.expires_at, self._clock()))

    def renew(self, sequence: Sequence) -> None:
        """It is used just now. Where calls are committed its lease begins anew with that, and not before."""
        if not self._store.write_through:
            sequence.last_used_at = self._clock()
        self.residents.used(sequence)

    async def touch(self, sequence: Sequence) -> bool:
        """Begin its lease anew, for the store too; a tentative sequence begins by that, and must be quiet.

        False: another process moved the sequence, or ended it.
        """
        now = self._clock()
        if self._store.write_through:
            begin = Begin(self._record(sequence)) if sequence.tentative else None
            (applied,) = await self._store.commit([begin or Touch(sequence.key, sequence.revision, now)])
            if not applied:
                return False
            if begin:
                sequence.revision = begin.record.revision
        sequence.last_used_at = now
        return True

    def take_due(self, most: int) -> list[Sequence]:
        """Of those whose lease may be over, some; `watch` or `move_out` must follow."""
        return self._leases.take_due(self._clock(), most)

    def _record(self, sequence: Sequence) -> Record:
        answers = sequence.replays.packed if sequence.replays else []
        state = pack_state(sequence.model.engine.read(sequence.slot))
        return record_of(sequence, state, sequence.step, answers, sequence.last_used_at)

    def _model_of(self, record: Record) -> LoadedModel:
        try:
            model = self._registry.get_running(record.key[1], record.version)
        except (ModelNotFound, VersionNotFound):
            if self._store.shared and record.version > self._registry.newest_seen(record.key[1]):
                raise ModelNotReady(
                    f"The sequence began elsewhere with version {record.version}, which is not here yet. "
                    "Send the call to another replica, or again in a moment."
                ) from None
            raise gone(VERSION_UNLOADED) from None
        if model.fingerprint != record.fingerprint:
            raise SequenceGone(
                f"The sequence began with another file than the one that is version {record.version} now. "
                "Create it again to begin from zeros.",
                reason=VERSION_UNLOADED,
            )
        return model
