"""A call's steps: its turn, its number, its answer, once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import structlog

from service.engine.request import Array, Request, Result, State, nobody
from service.errors import CarouselError, EngineFailure, OutOfTurn, Stale, StateMoved
from service.replay import Recipe, Replays, is_large, pack_answer
from service.residence import Residence
from service.sequence import OnEnd, Sequence, Steps
from service.stores.store import Key, Store
from service.visits import Visits

MOST_TRIES = 8
"""Of a call whose sequence other processes keep moving."""

log = structlog.get_logger(__name__)


class Stepping:
    """Runs steps so that a repeated call moves nothing, whichever process answered the first."""

    def __init__(
        self, residence: Residence, visits: Visits, store: Store, find: Callable[[Key], Awaitable[Sequence]]
    ) -> None:
        self._residence = residence
        self._visits = visits
        self._store = store
        self._find = find
        self._again: set[asyncio.Task[None]] = set()

    async def step(self, sequence: Sequence, work: Steps) -> Result:
        """See `Sequences.step`."""
        asked = sequence
        for _ in range(MOST_TRIES):
            if not self._visits.is_here(sequence) and sequence.end_reason is None:
                sequence = await self._find(sequence.key)  # it made room for others
            try:
                result = await self._step(sequence, work)
            except Stale:
                await self.refresh(sequence)
                continue
            asked.last_used_at = sequence.last_used_at
            return result
        raise StateMoved("Other servers step this sequence at the same time, again and again. Name its `step`.")

    def begin(self, sequence: Sequence, work: Steps, on_end: OnEnd) -> Request | None:
        """See `Sequences.begin`."""
        if work.step is not None and work.step != sequence.step + sequence.steps_queued:
            return None
        large = work.commit and is_large(len(work.inputs), sequence.model.spec)
        if large or not (work.commit or not self._store.write_through):
            return None
        turns = sequence.turns or sequence.make_turns()
        if not turns.try_enter(alone=False):
            return None

        def ended(request: Request) -> None:
            try:
                self._finish(sequence, work, request.result)
                self._visits.leave(sequence, turns)
            finally:  # a call that ended is answered
                outcome = request.result or request.take_error()
                if isinstance(outcome, Stale | OutOfTurn):  # another process may have answered it, or those before it
                    self._take_the_long_way(sequence, work, on_end)
                else:
                    on_end(outcome)

        try:
            return self._submit(sequence, work, None, ended)
        except BaseException:
            self._visits.leave(sequence, turns)
            raise

    def _take_the_long_way(self, sequence: Sequence, work: Steps, on_end: OnEnd) -> None:
        async def again() -> None:
            try:
                outcome: Result | CarouselError = await self.step(sequence, work)
            except CarouselError as error:
                outcome = error
            except Exception:
                log.exception("step_failed", model=sequence.model.name)
                outcome = EngineFailure("The call failed; the state is what it was before it.")
            on_end(outcome)

        task = asyncio.create_task(again())
        self._again.add(task)
        task.add_done_callback(self._again.discard)

    async def _step(self, sequence: Sequence, work: Steps) -> Result:
        if work.step is not None and work.step != sequence.step + sequence.steps_queued:
            return await self._settle(sequence, work, work.step)
        large = work.commit and is_large(len(work.inputs), sequence.model.spec)
        alone = large or _begins_as_it_is(sequence, work)
        turns = sequence.turns or sequence.make_turns()
        if not turns.try_enter(alone=alone):
            await turns.enter(alone=alone)
        try:
            return await self._run(sequence, work, large=large)
        except OutOfTurn:  # those before it failed; or it waited in line behind the call that it repeats
            pass
        finally:
            self._visits.leave(sequence, turns)
        assert work.step is not None, "only a call that names its step can be out of turn"
        return await self._settle(sequence, work, work.step)

    async def _run(self, sequence: Sequence, work: Steps, *, large: bool) -> Result:
        """In one's turn, beside other steps; a `large` answer in a turn alone, to know the state before it."""
        self._visits.renew(sequence)
        engine = sequence.model.engine
        request = self._submit(sequence, work, engine.read(sequence.slot) if large else None, nobody)
        kept: Result | None = None
        try:
            result = await engine.result(request)
            if not work.commit:
                await self._touch(sequence)
            kept = result
            return result
        finally:
            self._finish(sequence, work, kept)

    def _submit(
        self, sequence: Sequence, work: Steps, before: State | None, on_end: Callable[[Request], None]
    ) -> Request:
        """In one's turn, hand the work to the engine; `_finish` must follow. `before`: of a large answer."""
        self._visits.renew(sequence)
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
        sequence.before = before
        if work.commit:
            sequence.steps_queued += len(work.inputs)
        return request

    def _finish(self, sequence: Sequence, work: Steps, result: Result | None) -> None:
        """The work is over, and failed if there is no result; whoever calls this leaves."""
        if work.commit:
            sequence.steps_queued -= len(work.inputs)
        if result is not None:
            if work.commit and not self._store.write_through:  # else that was committed together with the state
                sequence.replays = sequence.replays or Replays()
                sequence.replays.append(pack_answer(work.inputs, result, sequence.before))
            self._visits.confirm(sequence)
        sequence.before = None

    async def _settle(self, sequence: Sequence, work: Steps, step: int) -> Result:
        """Wait for the calls that came before, to know what a call is that names another step than they lead to.

        It repeats one that was answered: that answer. It is right after all: it runs. Else raises StepConflict.
        """
        async with self._visits.turn(sequence):
            found = _answered(sequence, step, work.inputs)
            if found is None and step != sequence.step and self._store.shared:
                await self._residence.read_anew(sequence)
                found = _answered(sequence, step, work.inputs)
            if found:
                await self._touch(sequence)
                return await _follow(found, sequence, work.inputs) if isinstance(found, Recipe) else found
            if step != sequence.step:
                raise sequence.step_conflict(step)
            large = work.commit and is_large(len(work.inputs), sequence.model.spec)
            if not (large or _begins_as_it_is(sequence, work)):
                sequence.make_turns().share()
            return await self._run(sequence, work, large=large)

    async def refresh(self, sequence: Sequence) -> None:
        """See what other processes did to it; without a row after that, it is to be found anew. Raises SequenceGone."""
        if not self._visits.is_here(sequence):
            return
        with suppress(Stale):  # another took its place
            async with self._visits.turn(sequence):
                await self._residence.read_anew(sequence)

    async def _touch(self, sequence: Sequence) -> None:
        """What moves nothing renews the lease too. Raises Stale if it was of a state that is past."""
        if not await self._residence.touch(sequence):
            raise Stale("Another process moved the sequence meanwhile.")


def _begins_as_it_is(sequence: Sequence, work: Steps) -> bool:
    """Does it begin a sequence without moving it? The state that it begins with is then committed, in a turn alone."""
    return sequence.tentative and not work.commit


def _answered(sequence: Sequence, step: int, inputs: Array) -> Result | Recipe | None:
    return sequence.replays.find(step, inputs, sequence.model.spec) if sequence.replays else None


async def _follow(recipe: Recipe, sequence: Sequence, inputs: Array) -> Result:
    """Compute a large answer once more, beside the sequence."""
    result = await sequence.model.engine.infer_once(
        inputs, recipe.state, outputs=recipe.outputs, return_state=recipe.return_state, tenant=sequence.key[0]
    )
    return replace(result, position=recipe.position, replayed=True)
