"""The life of a sequence: create, step, fork, overwrite, expire, end; and who owns it.

Calls to one sequence take turns in the order of arrival; calls to different sequences share batches in the engine.
What is answered is committed to the store, where that takes every step; a row that another process left behind is read
anew. Another tenant's sequence is one that never was. Knows nothing of HTTP, and reads the time only from its clock.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex
from time import time

from service.census import Census
from service.commits import pack_state, record_of
from service.engine.request import Array, Outputs, Request, Result, State
from service.errors import (
    InvalidInput,
    SequenceExists,
    SequenceGone,
    SequenceNotFound,
    Stale,
    StateDamaged,
    StateMoved,
)
from service.metrics import Metrics
from service.registry import LoadedModel, Registry
from service.residence import Residence
from service.sequence import Listed, OnEnd, Sequence, Steps, gone, require_streaming
from service.settings import Settings
from service.stepping import Stepping
from service.stores.memory import MemoryStore
from service.stores.store import (
    DAMAGED,
    DELETED,
    EXPIRED,
    VERSION_UNLOADED,
    Begin,
    End,
    Key,
    Record,
    Replace,
    Store,
    Tombstone,
)
from service.visits import Visits
from service.volley_calls import VolleyResult, begin_volley


class Sequences:
    """Every live sequence that this process knows of; with a store that it shares, also those that others know."""

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time,
        store: Store | None = None,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._store = store or MemoryStore()
        self._residence = Residence(registry, settings, self._store, clock)
        self._census = Census(registry, settings, metrics, self._store, self._residence)
        self._visits = Visits(self._residence, self._census)
        self._stepping = Stepping(self._residence, self._visits, self._store, self._find)

    # -- begin and end -----------------------------------------------------------------------------------------------

    async def create(
        self,
        tenant: str,
        model: LoadedModel,
        *,
        sequence_id: str | None = None,
        state: State | None = None,
        step: int = 0,
        ttl_seconds: float | None = None,
        tentative: bool = False,
    ) -> Sequence:
        """Begin a sequence from `state` or zeros; a `tentative` one is no more unless one of its calls succeeds.

        Raises SequenceExists, NotStreamable, NoRoom, InvalidInput, StoreUnavailable.
        """
        ttl_seconds = self._checked_ttl(ttl_seconds)
        require_streaming(model)
        key = (tenant, model.name, sequence_id or f"seq-{token_hex(12)}")
        await self._require_free(key)
        await self._census.require_room(model)
        await self._residence.make_room(model)
        if self.look_up(key):
            raise _exists(key)  # begun while room was made
        sequence = self._residence.move_in(key, model, state, step, ttl_seconds, tentative=tentative)
        if not tentative:
            if self._store.write_through:
                await self._commit_beginning(sequence)
            self._census.begun(model)
        return sequence

    async def delete(self, sequence: Sequence) -> None:
        """End it after the calls that came before. No step is run."""
        sequence = await self._here(sequence)
        async with self._visits.turn(sequence):
            await self._end(sequence, DELETED)

    def discard(self, sequence: Sequence) -> None:
        """Undo a tentative `create`, unless a call succeeded since or is under way."""
        self._visits.discard(sequence)

    async def end_all(self, model: LoadedModel, reason: str) -> None:
        """End every sequence of a model version that has a row, each after the calls that came before.

        The others have ended once the version is gone: whoever asks for one is told so.
        """
        busy = []
        for count, sequence in enumerate([s for s in self._residence.residents if s.model is model], 1):
            if sequence.is_busy or self._store.write_through:  # a call may come while the end is committed
                busy.append(sequence)
            elif self._visits.is_here(sequence):
                await self._end(sequence, reason)
            if count % 256 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*(self._end_in_turn(sequence, reason) for sequence in busy))

    def num_held(self, model: LoadedModel) -> int:
        """Sequences of a model version that have a row."""
        return self._residence.residents.count(model)

    async def expire(self, most: int = 32) -> bool:
        """End sequences whose lease is over, looking at `most` at a time. True: there may be more to do just now."""
        now, due = self._clock(), self._residence.take_due(most)
        for sequence in due:
            if sequence.expires_at > now or sequence.is_busy:
                self._residence.watch(sequence)
            elif self._store.write_through:
                self._residence.move_out(sequence)  # the store knows best when the last call was, and ends it
            else:
                await self._end(sequence, EXPIRED)
        ended = await self._store.expire(now, most - len(due)) if len(due) < most else []
        for key in ended:
            self._census.ended(key, EXPIRED)
        return len(due) + len(ended) >= most

    async def count(self) -> None:
        """Tell the metrics how many there are."""
        await self._census.count()

    # -- find --------------------------------------------------------------------------------------------------------

    def look_up(self, key: Key) -> Sequence | None:
        """A live sequence that has a row here, by all that names it."""
        sequence = self._residence.residents.find(key)
        return None if sequence is None or self._is_over(sequence) else sequence

    async def find(self, tenant: str, model_name: str, sequence_id: str, *, fresh: bool = False) -> Sequence:
        """`fresh`: as it stands now, whichever process moved it last.

        Raises SequenceGone for an hour after its end, else SequenceNotFound; ModelNotFound for no such model.
        """
        sequence = await self._find((tenant, model_name, sequence_id))
        if fresh and self._store.shared:
            await self._stepping.refresh(sequence)
            sequence = await self._here(sequence)
        return sequence

    async def list(self, tenant: str, model_name: str, *, after: str = "", most: int = 100) -> list[Listed]:
        """This tenant's sequences of a model, by id, those after `after`."""
        if not any(model.name == model_name for model in self._residence.residents.models()):  # one may be leaving
            self._registry.get(model_name)
        now = self._clock()
        found = {
            record.key[2]: Listed(record.key[2], record.key[1], record.version, record.step, record.expires_at)
            for record in await self._store.list(tenant, model_name, after=after, most=most, now=now)
        }
        if not self._store.write_through:
            for s in self._residence.residents:
                if s.key[:2] == (tenant, model_name) and s.id > after and s.expires_at > now:
                    found[s.id] = Listed(s.id, model_name, s.model.version, s.step, s.expires_at)
        return [found[name] for name in heapq.nsmallest(most, found)]

    async def _find(self, key: Key) -> Sequence:
        if sequence := await self._alive(key):
            return sequence
        found = await self._read(key)
        if isinstance(found, Record):
            try:
                return await self._residence.revive(found)
            except SequenceGone:
                if self._registry.is_unloaded(key[1]):  # those that had a row ended then; loading brings none back
                    await self._end_unloaded(found)
                raise
        if isinstance(found, Tombstone):
            raise gone(found.reason)
        self._registry.get(key[1])
        raise SequenceNotFound("There is no such sequence. Create it, or send `start: true` with its first steps.")

    async def _here(self, sequence: Sequence) -> Sequence:
        """The same, with a row, if it gave that up since it was found."""
        return sequence if self._visits.is_here(sequence) or sequence.end_reason else await self._find(sequence.key)

    # -- use ---------------------------------------------------------------------------------------------------------

    async def step(
        self,
        sequence: Sequence,
        inputs: Array,
        *,
        step: int | None = None,
        outputs: Outputs = "all",
        return_state: bool = False,
        commit: bool = True,
        deadline: float | None = None,
    ) -> Result:
        """Run `inputs`, `(T, F)` or `(T,)`; the result's position is the step it leads to.

        `step` is where the caller believes the sequence to stand, counting calls that are under way. A call that was
        answered before, same `step` and same inputs, gets that answer again and moves nothing. Raises StepConflict,
        SequenceGone, StoreUnavailable and what `Engine.infer` raises; the sequence is then as it was.
        """
        return await self._stepping.step(sequence, Steps(inputs, step, outputs, return_state, commit, deadline))

    def begin(self, sequence: Sequence, work: Steps, on_end: OnEnd) -> Request | None:
        """`step` without a task: `on_end` is told how it ended. None, and nothing done: it must take the long way.

        That is so when it names another step than the calls under way lead to, would have to wait for its turn, or has
        a large answer. Raises what `Engine.submit` raises. `withdraw` takes it back.
        """
        return self._stepping.begin(sequence, work, on_end)

    def begin_volley(
        self, sequences: tuple[Sequence, ...], inputs: Array, outputs: Outputs, on_end: Callable[[VolleyResult], None]
    ) -> None:
        """`begin` for many sequences at once, see `volley_calls`. Raises QueueFull, Draining."""
        begin_volley(sequences, inputs, outputs, self._residence.renew, on_end)

    def withdraw(self, sequence: Sequence, request: Request) -> None:
        """The caller of `begin` is gone."""
        sequence.model.engine.withdraw(request)

    async def read_state(self, sequence: Sequence) -> tuple[int, State]:
        """The step and the state there."""
        sequence = await self._here(sequence)
        async with self._visits.turn(sequence):
            await self._catch_up(sequence, renew=True)
            return sequence.step, sequence.model.engine.read(sequence.slot)

    async def overwrite(self, sequence: Sequence, state: State, step: int, *, if_match: int | None = None) -> None:
        """Replace state and step. Raises StateMoved unless the sequence stands at `if_match`, where that is given."""
        sequence = await self._here(sequence)
        async with self._visits.turn(sequence):
            await self._catch_up(sequence)
            if if_match is not None and if_match != sequence.step:
                raise StateMoved(
                    f"If-Match names step {if_match}; the sequence stands at {sequence.step}.",
                    expected=sequence.step,
                    received=if_match,
                )
            if self._store.write_through:
                await self._commit_replacement(sequence, state, step)
            sequence.model.engine.write(sequence.slot, state, step)
            sequence.replays = None  # they are answers of another past
            self._visits.confirm(sequence)

    async def fork(self, sequence: Sequence, sequence_id: str | None = None) -> Sequence:
        """A copy, state and step, that goes its own way."""
        sequence = await self._here(sequence)
        async with self._visits.turn(sequence):
            await self._catch_up(sequence, renew=True)
            return await self.create(
                sequence.key[0],
                sequence.model,
                sequence_id=sequence_id,
                state=sequence.model.engine.read(sequence.slot),
                step=sequence.step,
                ttl_seconds=sequence.ttl_seconds,
            )

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _alive(self, key: Key) -> Sequence | None:
        """The sequence, if it has a row here; one whose lease is over leaves."""
        sequence = self._residence.residents.find(key)
        if sequence and self._is_over(sequence):
            if self._store.write_through:
                self._residence.move_out(sequence)
            else:
                await self._end(sequence, EXPIRED)
            return None
        return sequence

    async def _read(self, key: Key) -> Record | Tombstone | None:
        try:
            return await self._store.read(key, self._clock())
        except StateDamaged:
            self._census.ended(key, DAMAGED)
            raise gone(DAMAGED) from None

    async def _require_free(self, key: Key) -> None:
        """Raises SequenceExists, but not for one that can never go on: whoever was told so may begin it again."""
        if await self._alive(key):
            raise _exists(key)
        if not isinstance(found := await self._read(key), Record):
            return
        if not self._residence.has_lost_its_version(found):
            raise _exists(key)
        await self._end_unloaded(found)

    async def _commit_beginning(self, sequence: Sequence) -> None:
        """Or it never was. Raises SequenceExists."""
        async with self._visits.turn(sequence):
            state = pack_state(sequence.model.engine.read(sequence.slot))
            record = record_of(sequence, state, sequence.step, [], sequence.created_at)
            try:
                (applied,) = await self._store.commit([Begin(record)])
                if not applied:
                    raise _exists(sequence.key)
            except BaseException:
                self._residence.move_out(sequence)
                raise
            sequence.revision = record.revision

    async def _commit_replacement(self, sequence: Sequence, state: State, step: int) -> None:
        record = record_of(sequence, pack_state(state), step, [], self._clock())
        change = Begin(record) if sequence.tentative else Replace(record, sequence.revision)
        (applied,) = await self._store.commit([change])
        if not applied:
            raise StateMoved("Another server stepped the sequence meanwhile. Read the state again.")
        sequence.revision, sequence.last_used_at = record.revision, record.last_used_at

    async def _catch_up(self, sequence: Sequence, *, renew: bool = False) -> None:
        """In one's turn: see what other processes did to it; `renew` its lease for them too."""
        if self._store.shared:
            await self._residence.read_anew(sequence)
        if renew and not sequence.tentative:
            await self._residence.touch(sequence)

    async def _end(self, sequence: Sequence, reason: str) -> None:
        await self._store.commit([End(sequence.key, reason, self._clock())])
        sequence.end_reason = reason
        self._residence.move_out(sequence)
        self._census.ended(sequence.key, reason)

    async def _end_unloaded(self, record: Record) -> None:
        """It has no row, and its model version is gone."""
        (applied,) = await self._store.commit([End(record.key, VERSION_UNLOADED, self._clock(), record.revision)])
        if applied:
            self._census.ended(record.key, VERSION_UNLOADED)

    async def _end_in_turn(self, sequence: Sequence, reason: str) -> None:
        with suppress(SequenceGone, Stale):
            async with self._visits.turn(sequence):
                await self._end(sequence, reason)

    def _is_over(self, sequence: Sequence) -> bool:
        """Has its lease run out, with no call under way?"""
        return sequence.expires_at <= self._clock() and not sequence.is_busy

    def _checked_ttl(self, ttl_seconds: float | None) -> float:
        if ttl_seconds is None:
            return self._settings.sequence_ttl_seconds
        if not 0 < ttl_seconds <= self._settings.max_ttl_seconds:
            raise InvalidInput(
                f"ttl_seconds: expected more than 0 and at most {self._settings.max_ttl_seconds:g}.",
                expected=f"0 < ttl_seconds <= {self._settings.max_ttl_seconds:g}",
                received=ttl_seconds,
            )
        return ttl_seconds


def _exists(key: Key) -> SequenceExists:
    return SequenceExists(f"Sequence {key[2]!r} is there already. Take another id, or step or delete this one.")
