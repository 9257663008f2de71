"""The life of a sequence: create, step, fork, overwrite, expire, end; and who owns it.

Calls to one sequence take turns in the order of arrival; calls to different sequences share batches in the engine.
Another tenant's sequence is one that never was. Knows nothing of HTTP, and reads the time only from its clock.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from secrets import token_hex
from time import time

from service.engine.request import Array, Outputs, Request, Result, State, nobody
from service.errors import (
    CarouselError,
    InvalidInput,
    NoRoom,
    OutOfTurn,
    SequenceExists,
    SequenceGone,
    SequenceNotFound,
    StateMoved,
)
from service.leases import Leases
from service.metrics import Metrics, SequenceMetrics
from service.registry import LoadedModel, Registry
from service.replay import Recipe, Replays, is_large
from service.sequence import Key, Sequence, Steps, Tombstone, require_streaming
from service.settings import Settings
from service.turns import Turns
from service.volley_calls import VolleyResult, begin_volley

TOMBSTONE_SECONDS = 3600.0
"""How long an ended sequence answers 410 with the reason, before it is one that never was."""


class Sequences:
    """Every live sequence of this process, and the recently dead."""

    def __init__(
        self, registry: Registry, settings: Settings, metrics: Metrics, clock: Callable[[], float] = time
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._live: dict[Key, Sequence] = {}
        self._ended: OrderedDict[Key, Tombstone] = OrderedDict()
        self._num_of: dict[LoadedModel, int] = {}
        self._told: dict[LoadedModel, SequenceMetrics] = {}
        self._leases: Leases[Sequence] = Leases()

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

        Raises SequenceExists, NotStreamable, NoRoom, InvalidInput.
        """
        ttl_seconds = self._checked_ttl(ttl_seconds)
        require_streaming(model)
        key = (tenant, model.name, sequence_id or f"seq-{token_hex(12)}")
        if self.look_up(key):
            raise SequenceExists(f"Sequence {key[2]!r} is there already. Take another id, or step or delete this one.")
        limit = self._settings.max_sequences
        if self._num_of.get(model, 0) >= limit:
            raise NoRoom(
                f"{limit} sequences of {model.name!r} are held already. End some, or try again later.",
                limit=limit,
                retry_after=1,
            )
        now = self._clock()
        sequence = Sequence(key, model, model.engine.open(state, step), ttl_seconds, now, now, tentative)
        sequence.watched = self._leases.watch(sequence, sequence.expires_at)
        self._live[key] = sequence
        self._count(model, +1)
        if not tentative:
            self._begin(sequence)
        return sequence

    async def delete(self, sequence: Sequence) -> None:
        """End it after the calls that came before. No step is run."""
        async with self._turn(sequence):
            self._end(sequence, "deleted")

    async def end_all(self, model: LoadedModel, reason: str) -> None:
        """End every sequence of a model version, each after the calls that came before, and forget the version."""
        busy = []
        for count, sequence in enumerate([s for s in self._live.values() if s.model is model], 1):
            if sequence.is_busy:
                busy.append(sequence)
            elif self._live.get(sequence.key) is sequence:
                self._end(sequence, reason)
            if count % 256 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*(self._end_in_turn(sequence, reason) for sequence in busy))
        if not self._num_of.get(model):
            self._num_of.pop(model, None)
            self._told.pop(model, None)

    def num_held(self, model: LoadedModel) -> int:
        """Sequences of a model version."""
        return self._num_of.get(model, 0)

    def discard(self, sequence: Sequence) -> None:
        """Undo a tentative `create`, unless a call succeeded since or is under way."""
        if sequence.tentative and not sequence.is_busy and self._live.get(sequence.key) is sequence:
            self._let_go(sequence)

    def expire(self, most: int = 32) -> bool:
        """End sequences whose lease is over, looking at `most` at a time. True: there may be more to do just now."""
        now = self._clock()
        while self._ended and next(iter(self._ended.values())).ended_at + TOMBSTONE_SECONDS < now and most:
            self._ended.popitem(last=False)
            most -= 1
        due = self._leases.take_due(now, most)
        for sequence in due:
            if sequence.expires_at <= now and not sequence.is_busy:
                self._end(sequence, "expired")
            else:
                sequence.watched = self._leases.watch(sequence, max(sequence.expires_at, now))
        most -= len(due)
        return most <= 0

    # -- find --------------------------------------------------------------------------------------------------------

    async def find(self, tenant: str, model_name: str, sequence_id: str) -> Sequence:
        """Raises SequenceGone for an hour after its end, else SequenceNotFound; ModelNotFound for no such model."""
        key = (tenant, model_name, sequence_id)
        if sequence := self.look_up(key):
            return sequence
        if tombstone := self._ended.get(key):
            raise _gone(tombstone.reason)
        self._registry.get(model_name)
        raise SequenceNotFound("There is no such sequence. Create it, or send `start: true` with its first steps.")

    async def list(self, tenant: str, model_name: str, *, after: str = "", most: int = 100) -> list[Sequence]:
        """This tenant's sequences of a model, by id, those after `after`."""
        self._registry.get(model_name)
        now = self._clock()
        own = (
            s for k, s in self._live.items() if k[:2] == (tenant, model_name) and k[2] > after and s.expires_at > now
        )
        return heapq.nsmallest(most, own, key=lambda sequence: sequence.id)

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
        SequenceGone and what `Engine.infer` raises; the sequence is then as it was.
        """
        work = Steps(inputs, step, outputs, return_state, commit, deadline)
        if step is not None and step != sequence.step + sequence.steps_queued:
            replay = await self._settled(sequence, step, inputs)
            if replay is not None:
                return replay
        try:
            return await self._run(sequence, work)
        except OutOfTurn as error:  # those before it failed; or it waited in line behind the call that it repeats
            assert step is not None, "only a call that names its step can be out of turn"
            replay = await self._settled(sequence, step, inputs)
            if replay is not None:
                return replay
            raise sequence.step_conflict(step) from error

    def begin(
        self, sequence: Sequence, work: Steps, on_end: Callable[[Result | CarouselError], None]
    ) -> Request | None:
        """`step` without a task: `on_end` is told how it ended. None, and nothing done: it must take the long way.

        That is so when it names another step than the calls under way lead to, would have to wait for its turn, or has
        a large answer. Raises what `Engine.submit` raises. `withdraw` takes it back.
        """
        if work.step is not None and work.step != sequence.step + sequence.steps_queued:
            return None
        if work.commit and is_large(len(work.inputs), sequence.model.spec):
            return None
        turns = sequence.turns or sequence.make_turns()
        if not turns.try_enter(alone=False):
            return None

        def ended(request: Request) -> None:
            outcome = request.result or request.error
            assert outcome is not None, "it has ended"
            self._finish(sequence, turns, work, request)
            on_end(outcome)

        return self._submit(sequence, turns, work, None, ended)

    def begin_volley(
        self, sequences: tuple[Sequence, ...], inputs: Array, outputs: Outputs, on_end: Callable[[VolleyResult], None]
    ) -> None:
        """`begin` for many sequences at once, see `volley_calls`. Raises QueueFull, Draining."""
        begin_volley(sequences, inputs, outputs, self._clock, on_end)

    def withdraw(self, sequence: Sequence, request: Request) -> None:
        """The caller of `begin` is gone."""
        sequence.model.engine.withdraw(request)

    async def _run(self, sequence: Sequence, work: Steps) -> Result:
        """Take a turn beside other steps; a call with a large answer takes it alone, to know the state before it."""
        engine, turns = sequence.model.engine, sequence.turns or sequence.make_turns()
        large = work.commit and is_large(len(work.inputs), sequence.model.spec)
        if not turns.try_enter(alone=large):
            await turns.enter(alone=large)
        request = self._submit(sequence, turns, work, engine.read(sequence.slot) if large else None, nobody)
        try:
            return await engine.result(request)
        finally:
            self._finish(sequence, turns, work, request)

    def _submit(
        self, sequence: Sequence, turns: Turns, work: Steps, before: State | None, on_end: Callable[[Request], None]
    ) -> Request:
        """Whoever entered `turns` hands its work to the engine; `_finish` must follow. `before`: of a large answer."""
        try:
            self._renew(sequence)
            request = sequence.model.engine.submit(
                sequence.slot,
                work.inputs,
                outputs=work.outputs,
                return_state=work.return_state,
                commit=work.commit,
                deadline=work.deadline,
                tenant=sequence.key[0],
                at=work.step,
                owner=sequence,
                on_end=on_end,
            )
        except BaseException:
            self._leave(sequence, turns)
            raise
        sequence.before = before
        if work.commit:
            sequence.steps_queued += len(work.inputs)
        return request

    def _finish(self, sequence: Sequence, turns: Turns, work: Steps, request: Request) -> None:
        """The work is over, one way or the other."""
        if work.commit:
            sequence.steps_queued -= len(work.inputs)
        if request.result is not None:
            if work.commit:
                sequence.replays = sequence.replays or Replays()
                sequence.replays.add(work.inputs, request.result, sequence.before)
            self._confirm(sequence)
        sequence.before = None
        self._leave(sequence, turns)

    async def read_state(self, sequence: Sequence) -> tuple[int, State]:
        """The step and the state there."""
        async with self._turn(sequence):
            return sequence.step, sequence.model.engine.read(sequence.slot)

    async def overwrite(self, sequence: Sequence, state: State, step: int, *, if_match: int | None = None) -> None:
        """Replace state and step. Raises StateMoved unless the sequence stands at `if_match`, where that is given."""
        async with self._turn(sequence):
            if if_match is not None and if_match != sequence.step:
                raise StateMoved(
                    f"If-Match names step {if_match}; the sequence stands at {sequence.step}.",
                    expected=sequence.step,
                    received=if_match,
                )
            sequence.model.engine.write(sequence.slot, state, step)
            sequence.replays = None  # they are answers of another past
            self._confirm(sequence)

    async def fork(self, sequence: Sequence, sequence_id: str | None = None) -> Sequence:
        """A copy, state and step, that goes its own way."""
        async with self._turn(sequence):
            return await self.create(
                sequence.key[0],
                sequence.model,
                sequence_id=sequence_id,
                state=sequence.model.engine.read(sequence.slot),
                step=sequence.step,
                ttl_seconds=sequence.ttl_seconds,
            )

    # -- inside ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _turn(self, sequence: Sequence) -> AsyncIterator[None]:
        """Wait for one's turn; then the sequence is alive and nothing else of it runs; renew its lease."""
        turns = sequence.make_turns()
        await turns.enter(alone=True)
        try:
            self._renew(sequence)
            yield
            sequence.last_used_at = self._clock()
        finally:
            self._leave(sequence, turns)

    def _leave(self, sequence: Sequence, turns: Turns) -> None:
        turns.leave()
        if not turns.busy:
            sequence.turns = None  # an idle sequence holds nothing that it does not need
            if sequence.tentative:
                self.discard(sequence)

    def _confirm(self, sequence: Sequence) -> None:
        """A call succeeded."""
        sequence.last_used_at = self._clock()
        if sequence.tentative:
            sequence.tentative = False
            self._begin(sequence)

    def _begin(self, sequence: Sequence) -> None:
        self._ended.pop(sequence.key, None)
        self._told[sequence.model].created.inc()

    def _renew(self, sequence: Sequence) -> None:
        """Raises SequenceGone if it ended while the call waited for its turn."""
        if self._live.get(sequence.key) is not sequence:
            raise _gone(self._ended[sequence.key].reason if sequence.key in self._ended else "deleted")
        sequence.last_used_at = self._clock()

    async def _settled(self, sequence: Sequence, step: int, inputs: Array) -> Result | None:
        """Wait for the calls under way, to know what a call is that names another step than they lead to.

        It repeats one that was answered: that answer. It is right after all, since they failed: None. Else raises
        StepConflict.
        """
        async with self._turn(sequence):
            found = sequence.replays.find(step, inputs, sequence.model.spec) if sequence.replays else None
            if isinstance(found, Recipe):
                return await _follow(found, sequence, inputs)
            if found:
                return found
            if step != sequence.step:
                raise sequence.step_conflict(step)
            return None

    def look_up(self, key: Key) -> Sequence | None:
        """A live sequence, by all that names it."""
        sequence = self._live.get(key)
        if sequence and self._is_over(sequence):
            self._end(sequence, "expired")
            return None
        return sequence

    def _is_over(self, sequence: Sequence) -> bool:
        """Has its lease run out, with no call under way?"""
        return sequence.last_used_at + sequence.ttl_seconds <= self._clock() and not sequence.is_busy

    def _end(self, sequence: Sequence, reason: str) -> None:
        self._let_go(sequence)
        self._ended[sequence.key] = Tombstone(reason, self._clock())
        self._told[sequence.model].ended[reason].inc()

    async def _end_in_turn(self, sequence: Sequence, reason: str) -> None:
        with suppress(SequenceGone):
            async with self._turn(sequence):
                self._end(sequence, reason)

    def _let_go(self, sequence: Sequence) -> None:
        """Give back all that it held."""
        del self._live[sequence.key]
        self._leases.forget(sequence, sequence.watched)
        sequence.replays = None
        sequence.model.engine.close(sequence.slot)
        self._count(sequence.model, -1)

    def _count(self, model: LoadedModel, change: int) -> None:
        count = self._num_of[model] = self._num_of.get(model, 0) + change
        if model not in self._told:
            self._told[model] = SequenceMetrics(self._metrics, model.name, model.version)
        self._told[model].held.set(count)
        self._told[model].state_bytes.set(count * model.spec.state_bytes)

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


async def _follow(recipe: Recipe, sequence: Sequence, inputs: Array) -> Result:
    """Compute a large answer once more, beside the sequence."""
    result = await sequence.model.engine.infer_once(
        inputs, recipe.state, outputs=recipe.outputs, return_state=recipe.return_state, tenant=sequence.key[0]
    )
    return replace(result, position=recipe.position, replayed=True)


def _gone(reason: str) -> SequenceGone:
    return SequenceGone(f"The sequence has ended: {reason}. Create it again to begin from zeros.", reason=reason)
