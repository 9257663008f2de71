"""Continuous batching: requests of many sequences share runs of one model, and none sees the others.

A tick is schedule -> run -> settle. A row's new state is written only when its request may keep it, so a failed,
abandoned or late request leaves the row as it was.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from service.engine.cost_model import CostModel
from service.engine.model_runner import ModelRunner
from service.engine.request import Array, Commit, Outputs, Request, Result, State, nobody
from service.engine.state_arena import Slots
from service.engine.ticker import Ticker
from service.engine.verdicts import caller_gone, late
from service.engine.volleys import Volley
from service.errors import Draining, EngineFailure, InvalidState, QueueFull
from service.metrics import EngineMetrics
from service.model_spec import ModelSpec

log = structlog.get_logger(__name__)


class Engine:
    """One model. A slot belongs to one sequence; its requests run in the order of arrival."""

    def __init__(
        self,
        runner: ModelRunner,
        cost_model: CostModel,
        metrics: EngineMetrics,
        *,
        num_slots: int,
        max_queue: int,
        max_queue_seconds: float,
        clock: Callable[[], float] = monotonic,
        commit: Commit | None = None,
    ) -> None:
        """`commit` makes the ends of requests that have an owner durable; None keeps them at once."""
        self.spec: ModelSpec = runner.spec
        self._runner = runner
        self.metrics = metrics
        self._slots = Slots(num_slots)
        self._rows = runner.rows(num_slots)
        self._required = [state.name for state in self.spec.states if state.required]
        self._ticker = Ticker(runner, cost_model, metrics, self._rows, clock, commit)
        self._scheduler, self._volleys = self._ticker.scheduler, self._ticker.volleys
        self._settlement = self._ticker.settlement
        self._max_queue = max_queue
        self._max_queue_seconds = max_queue_seconds
        self._clock = clock
        self._accepting = True
        self.failed = False
        """The loop ended by a fault of ours: nothing runs any more."""

    # -- slots: the state of a sequence between its requests ---------------------------------------------------------

    @property
    def num_slots_used(self) -> int:
        return self._slots.num_used

    @property
    def commit(self) -> Commit | None:
        return self._ticker.commit

    @commit.setter
    def commit(self, commit: Commit | None) -> None:
        self._ticker.commit = commit

    @property
    def num_runs(self) -> int:
        """Runs since the process began, those of an earlier engine of the same version among them."""
        return self.metrics.num_runs

    def open(self, state: State | None = None, position: int = 0) -> int:
        """Take a slot, with `state` or zeros in it, that has `position` steps behind it.

        Raises NoRoom; InvalidState where the model cannot begin from zeros.
        """
        if state is None and self._required:
            raise InvalidState(
                f"A sequence of this model begins with {', '.join(self._required)}: send it in `initial_state`, "
                "or under /v2 as an input.",
                expected=self._required,
            )
        slot = self._slots.allocate()
        self._rows.write(slot, state, position)
        return slot

    def close(self, slot: int) -> None:
        """Give a slot back. Its requests must be over."""
        self._slots.free(slot)

    def read(self, slot: int) -> State:
        return self._rows.read(slot)

    def position(self, slot: int) -> int:
        """Steps that the row has behind it: it moves together with the state."""
        return self._rows.position(slot)

    def write(self, slot: int, state: State, position: int) -> None:
        self._rows.write(slot, state, position)

    # -- requests ----------------------------------------------------------------------------------------------------

    async def infer(
        self,
        slot: int,
        inputs: Array,
        *,
        outputs: Outputs = "all",
        return_state: bool = False,
        commit: bool = True,
        deadline: float | None = None,
        tenant: str = "",
    ) -> Result:
        """Run all steps of `inputs`, `(T, F)` or `(T,)`, from the row's state.

        When this returns, the row stands after them; when it raises, the row is as it was. Both also hold when the
        caller is cancelled. `deadline` is on the engine's clock. Raises QueueFull, Draining, DeadlineExceeded,
        NonFiniteResult, EngineFailure.
        """
        request = self.submit(
            slot,
            inputs,
            outputs=outputs,
            return_state=return_state,
            commit=commit,
            deadline=deadline,
            tenant=tenant,
        )
        return await self.result(request)

    def submit(
        self,
        slot: int,
        inputs: Array,
        *,
        outputs: Outputs = "all",
        return_state: bool = False,
        commit: bool = True,
        deadline: float | None = None,
        tenant: str = "",
        at: int | None = None,
        owner: Any = None,
        on_end: Callable[[Request], None] = nobody,
        admitted: bool = False,
    ) -> Request:
        """Queue what `infer` describes; `result` waits for it, or `on_end` is told of it. In order, for each slot.

        It fails with OutOfTurn when the row does not stand at `at`, if given, once its turn has come; that is so when a
        request before it failed. Raises QueueFull, Draining.
        """
        if not admitted:
            self.admit(len(inputs))
        request = Request(
            slot, inputs, self._clock(), on_end, outputs, return_state, commit, deadline, tenant, at, owner
        )
        self._scheduler.add(request)
        self._ticker.wake()
        return request

    def max_volley_rows(self, steps: int) -> int:
        """Rows of one volley of so many steps, at most."""
        return self._volleys.most_rows(steps)

    def submit_volley(
        self, slots: NDArray[np.intp], inputs: Array, on_end: Callable[[Volley], None], tenant: str = ""
    ) -> None:
        """Queue the next steps of many rows, `inputs` (N, T, ...), at which nothing else may be asked of them.

        `on_end` is told when it is over. Raises QueueFull, Draining.
        """
        self.admit(inputs.shape[1])
        self._volleys.add(Volley(slots, inputs, self._clock(), on_end, tenant))
        self._ticker.wake()

    async def result(self, request: Request) -> Result:
        """Wait for a request's end; a caller who is cancelled here takes it back, unless it is done already."""
        if request.deadline is None:
            return await self._result(request)
        try:
            async with asyncio.timeout(max(0.0, request.deadline - self._clock())):
                return await self._result(request)
        except TimeoutError:
            raise late() from None

    async def _result(self, request: Request) -> Result:
        if not request.ended:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            request.on_end = lambda _: None if waiter.done() else waiter.set_result(None)
            try:
                await waiter
            except asyncio.CancelledError:
                await self._abandon(request)
                if request.result is None:
                    raise
        if request.error is not None:
            raise request.take_error()
        assert request.result is not None, "it has ended"
        return request.result

    async def infer_once(
        self,
        inputs: Array,
        state: State | None = None,
        *,
        outputs: Outputs = "all",
        return_state: bool = False,
        deadline: float | None = None,
        tenant: str = "",
        admitted: bool = False,
    ) -> Result:
        """Run one sequence whose state the caller carries: `infer` in a slot that is taken just for this call.

        `admitted`: the caller asked `admit` for all the rows of one call, which must not be refused for each other.
        """
        slot = self.open(state)
        try:
            request = self.submit(
                slot,
                inputs,
                outputs=outputs,
                return_state=return_state,
                deadline=deadline,
                tenant=tenant,
                admitted=admitted,
            )
            return await self.result(request)
        finally:
            self.close(slot)

    def admit(self, steps: int) -> None:
        """Refuse at once what would wait too long: later is no better for the caller, and the queue stays short.

        Streams are held up by streams only, so a backlog of jobs does not turn them away. Raises QueueFull, Draining.
        """
        if self.failed:
            raise EngineFailure("The engine has stopped; this server must be restarted.")
        if not self._accepting:
            raise Draining(
                "The server is shutting down. Send it again, to another replica or in a moment.", retry_after=1
            )
        waiting, seconds = self._scheduler.backlog(steps)
        waiting, seconds = waiting + self._volleys.num_rows, seconds + self._volleys.seconds
        if waiting >= self._max_queue or seconds >= self._max_queue_seconds:
            raise QueueFull(
                f"{waiting} requests wait already, for about {seconds:.1f} s of work. Send the call again later.",
                limit=self._max_queue,
                limit_seconds=self._max_queue_seconds,
                retry_after=max(1, math.ceil(seconds)),
            )

    def withdraw(self, request: Request) -> None:
        """The caller is gone: let `request` end, unless it just runs its last steps."""
        request.gone = True
        if not request.ended and self._scheduler.withdraw(request):
            self._settlement.drop(request, caller_gone())
            self._ticker.note_queue()

    async def _abandon(self, request: Request) -> None:
        """Leave the queue; a chunk that runs just now is waited for, since its row is in use until then."""
        if request.ended:
            return
        request.left = asyncio.get_running_loop().create_future()
        self.withdraw(request)
        while not request.left.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([request.left])

    # -- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._ticker.start(self._on_fault)

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, finish the queue for up to `drain_seconds`, then fail what is left."""
        self._accepting = False
        await self._ticker.stop(drain_seconds)

    def _on_fault(self, fault: BaseException) -> None:
        """The loop ends only when it is told to. If a fault of ours ended it, nobody may wait for it for ever."""
        self.failed, self._accepting = True, False
        log.critical("engine_stopped", model=self.spec.name, error=repr(fault))
        self._ticker.drop_all(EngineFailure("The engine stopped; this server must be restarted."))
