"""The engine's loop: as long as anything waits, ticks. A tick is schedule -> run -> settle. It knows no callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any

import numpy as np
import structlog

from service.engine.cost_model import CostModel
from service.engine.deferral import Deferral
from service.engine.hand_over import HandOver
from service.engine.lane import Ladder
from service.engine.model_runner import ModelRunner, RunOutput
from service.engine.request import Array, Batch, Batched, Commit
from service.engine.scheduler import Scheduler
from service.engine.settlement import Settlement
from service.engine.state_arena import Arena
from service.engine.verdicts import shut_down
from service.engine.volleys import Volleys
from service.errors import CarouselError
from service.metrics import EngineMetrics

INLINE_SECONDS = 0.0005
"""Runs predicted shorter than this stay on the event loop: handing them to a thread costs more than they take."""

BESIDE_STREAMS_SECONDS = 0.0005
"""Runs of offline work take no longer than this while streams are about: a step may have to wait for one."""

RUNS_TO_REFIT = 200
"""So often the scheduler is told what runs turned out to cost."""

log = structlog.get_logger(__name__)


class Ticker:
    """Of one engine, whose parts it drives: what waits, the model, and what becomes of its runs."""

    def __init__(
        self,
        runner: ModelRunner,
        cost_model: CostModel,
        metrics: EngineMetrics,
        rows: Arena,
        clock: Callable[[], float],
        commit: Commit | None,
    ) -> None:
        """`commit`: see Engine."""
        spec = runner.spec
        self._model = spec.name
        self._runner = runner
        self._cost_model = cost_model
        self._metrics = metrics
        self._rows = rows
        self._clock = clock
        whole = not spec.streaming
        ladder = Ladder(cost_model.ladder(), whole=whole)
        beside_streams = Ladder(cost_model.ladder(BESIDE_STREAMS_SECONDS), whole=whole)
        self.scheduler = Scheduler(ladder, beside_streams, cost_model.predict)
        self.volleys = Volleys(spec, rows, ladder, cost_model.predict, metrics, clock)
        self.settlement = Settlement(spec, rows, self.scheduler, metrics, clock)
        self.commit = commit
        self._deferral = Deferral(spec.name, self.settlement, metrics)
        self._runs_to_refit = RUNS_TO_REFIT
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._out_of_time = False
        self._stopped = False
        self._fault: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = HandOver("carousel-engine")

    def start(self, on_fault: Callable[[BaseException], None]) -> None:
        """`on_fault` is told when a fault of ours has ended the loop: nothing runs any more."""
        self._task = asyncio.create_task(self._run_forever(), name=f"engine {self._model}")
        self._task.add_done_callback(
            lambda task: on_fault(fault) if not task.cancelled() and (fault := task.exception()) else None
        )

    async def stop(self, drain_seconds: float) -> None:
        """Finish what waits for up to `drain_seconds`, then fail what is left. Nothing may be added meanwhile."""
        try:
            await asyncio.wait_for(self._until_idle(), drain_seconds)
        except TimeoutError:
            self._out_of_time = True  # what still waits fails at its next turn
            await self._until_idle()
        if self._task:
            # not cancelled: the traceback of that would hold the engine, and with it the model, for ever
            self._stopped = True
            self._wake.set()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.stop()

    def wake(self) -> None:
        """There is something to run."""
        self._wake.set()

    def note_queue(self) -> None:
        """Requests have ended."""
        self._metrics.queued.set(self._num_queued)
        if not self._num_queued:
            self._idle.set()

    @property
    def _num_queued(self) -> int:
        return self.scheduler.num_requests + self.volleys.num_rows

    async def _until_idle(self) -> None:
        while self._num_queued:
            self._idle.clear()
            await self._idle.wait()

    def drop_all(self, error: CarouselError) -> None:
        """End all that waits or runs, once the loop has ended."""
        for request in self.scheduler.drain():
            with suppress(Exception):  # of a device that is gone: the loop has told it, and the request has ended
                self.settlement.drop(request, error)
        self.volleys.drop_all(error)
        self.note_queue()

    async def _run_forever(self) -> None:
        while not self._stopped:
            await self._wake.wait()
            self._wake.clear()
            while not self._fault and ((batch := self.scheduler.next_batch(self._clock())) or self.volleys):
                if batch:
                    await self._tick(batch)
                del batch  # it knows whose the requests were
                if self._out_of_time:
                    self.volleys.drop_all(shut_down())
                elif self.volleys:
                    self.scheduler.note_stream(self._clock())
                    await self.volleys.run_next(self._run_model)
                self.note_queue()
                await asyncio.sleep(0)  # sockets are read between ticks, so that their requests join the next one
            if self._fault:
                raise self._fault

    async def _tick(self, batch: Batch) -> None:
        """Run the batch and settle every request of it. An error that nobody foresaw is that of its rows alone."""
        batch.requests = self.settlement.sift(batch.requests, self._clock(), out_of_time=self._out_of_time)
        if not batch.requests:
            return
        rows, begin = len(batch.requests), perf_counter()
        slots = np.fromiter((request.slot for request in batch.requests), np.intp, rows)
        states = None
        try:
            states = self._rows.gather(slots)
            output = await self._run(batch, states)
            ran = perf_counter()
            endings = self.settlement.settle(batch, slots, output, self._clock(), defer=self.commit is not None)
        except Exception:
            log.exception("run_failed", model=self._model, rows=len(batch.requests), steps=batch.steps)
            self.settlement.fail_all(batch, slots, states)
        else:
            before, after = ran - begin - output.seconds, perf_counter() - ran
            self._metrics.observe_run(rows, batch.steps, output.seconds, before, after)
            if endings and self.commit is not None:
                self._deferral.add(endings, self.commit, self._on_concluded, self._on_commits_end)

    def _on_concluded(self) -> None:
        self.note_queue()
        self._wake.set()

    def _on_commits_end(self, task: asyncio.Task[None]) -> None:
        """What was committed must be in its rows; where it could not be written, nothing may go on from them."""
        if not task.cancelled() and (fault := task.exception()):
            self._fault = fault
            self._wake.set()

    async def _run(self, batch: Batch, states: Batched) -> RunOutput:
        rows, steps = len(batch.requests), batch.steps
        pieces = [
            request.inputs if len(request.inputs) == steps else request.inputs[request.steps_done :][:steps]
            for request in batch.requests
        ]
        return await self._run_model(_joined(pieces).reshape(rows, steps, *pieces[0].shape[1:]), states)

    async def _run_model(self, inputs: Array, states: Batched) -> RunOutput:
        rows, steps = inputs.shape[:2]
        if self._cost_model.predict(rows, steps) < INLINE_SECONDS:
            output = self._runner.run(inputs, states)
        else:
            output = await self._thread.run(self._runner.run, inputs, states)
        self._cost_model.observe(rows, steps, output.seconds)
        self._runs_to_refit -= 1
        if not self._runs_to_refit:
            self._runs_to_refit = RUNS_TO_REFIT
            self.scheduler.refit(self._cost_model.ladder(), self._cost_model.ladder(BESIDE_STREAMS_SECONDS))
        return output


def _joined(pieces: list[Any]) -> Array:
    """All numbers one after the other. Joining bytes takes a third of the time that NumPy takes for arrays so small."""
    try:
        return np.frombuffer(b"".join(pieces), pieces[0].dtype)
    except TypeError:  # one does not lie in one piece
        return np.concatenate(pieces)
