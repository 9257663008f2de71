"""What becomes of a run: which rows keep their new state, and the answer to each request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from service.engine.coalescing import shares
from service.engine.model_runner import RunOutput
from service.engine.request import Batch, Batched, Ending, Request, Result
from service.engine.scheduler import Scheduler
from service.engine.state_arena import Arena
from service.engine.verdicts import caller_gone, find_failures, late, shut_down
from service.errors import CarouselError, EngineFailure, OutOfTurn
from service.metrics import EngineMetrics
from service.model_spec import ModelSpec


class Settlement:
    """Ends requests so that a row moves only with its answer: a failed one is as it was before the call."""

    def __init__(
        self, spec: ModelSpec, rows: Arena, scheduler: Scheduler, metrics: EngineMetrics, clock: Callable[[], float]
    ) -> None:
        self._spec = spec
        self._rows = rows
        self._scheduler = scheduler
        self._metrics = metrics
        self._clock = clock

    def sift(self, requests: list[Request], now: float, *, out_of_time: bool) -> list[Request]:
        """Those that are to run; the others end."""
        wanted, waited = [], []
        for request in requests:
            if request.gone:
                self.fail(request, caller_gone())
            elif out_of_time:
                self.fail(request, shut_down())
            elif request.at is not None and not request.steps_done and request.at != self._rows.position(request.slot):
                self.fail(request, OutOfTurn("A call before this one failed, so its step was not reached."))
            elif request.deadline is not None and request.deadline < now:
                self.fail(request, late())
            else:
                if not request.steps_done:
                    waited.append(now - request.arrived_at)
                wanted.append(request)
        self._metrics.queue_seconds.observe_all(waited)
        return wanted

    def settle(
        self, batch: Batch, slots: NDArray[np.intp], output: RunOutput, now: float, *, defer: bool = False
    ) -> list[Ending]:
        """Write the states that are to be kept, then answer. `defer`: ends that have an owner come back, undone."""
        failures = find_failures(batch, output, self._rows, now)
        not_kept: list[int] = []
        going_on: list[Request] = []
        begun: list[Request] = []
        ends: list[tuple[Request, Result]] = []
        deferred: list[Ending] = []
        for row, (request, outputs) in enumerate(zip(batch.requests, output.outputs, strict=True)):
            if failures and row in failures:
                self.fail(request, failures[row])
                not_kept.append(row)
                continue
            if len(request.inputs) != request.steps_done + batch.steps:
                if request.undo is None:
                    begun.append(request)
                _collect(request, outputs)
                going_on.append(request)
                continue
            result = self._result(request, outputs, row, output)
            if defer and request.commit and request.owner is not None:
                deferred.append(Ending(request, result, _answers(request, result), row, output.states))
                not_kept.append(row)
            else:
                ends.append((request, result))
                if not request.commit:
                    not_kept.append(row)
        if begun:
            self._save(begun)
        self._keep(not_kept, slots, output.states)
        for request in going_on:
            self._scheduler.proceed(request)
        for request, result in ends:
            self._conclude(request, result)
        self._count([request for request, _ in ends], now)
        if deferred:
            self._pack(deferred, output.states)
        return deferred

    def sift_endings(self, endings: list[Ending]) -> list[Ending]:
        """Of ends that waited for others to be committed, those that are still wanted; the others fail."""
        now, wanted = self._clock(), []
        for ending in endings:
            request = ending.request
            if request.gone:
                self.fail(request, caller_gone())
            elif request.deadline is not None and request.deadline < now:
                self.fail(request, late())
            else:
                wanted.append(ending)
        return wanted

    def conclude(self, endings: Sequence[Ending], errors: Sequence[CarouselError | None]) -> None:
        """The ends that were deferred are committed, those without an error: write their states, then answer."""
        pairs = list(zip(endings, errors, strict=True))
        committed = [ending for ending, error in pairs if error is None]
        for _, of_one_run in groupby(committed, key=lambda ending: id(ending.states)):
            run = list(of_one_run)
            slots = np.array([ending.request.slot for ending in run], np.intp)
            self._rows.scatter(slots, run[0].states, [ending.row for ending in run])
        for ending, error in pairs:
            if error is None:
                self._conclude(ending.request, ending.result)
            else:
                self.fail(ending.request, error)
        self._count([ending.request for ending in committed], self._clock())

    def fail(self, request: Request, error: CarouselError) -> None:
        """End a request that was running; one that stands for several lets each of them try alone."""
        self._restore(request)
        if request.members:
            self._scheduler.split(request)
        else:
            self._scheduler.finish(request)
            self._fail(request, error)

    def fail_all(self, batch: Batch, slots: NDArray[np.intp], states: Batched | None) -> None:
        """End what is left of a batch that went wrong; `states` is what its rows held, None if nothing was done yet."""
        for row, request in enumerate(batch.requests):
            if request.running:
                if states is not None:
                    self._rows.scatter(slots[row : row + 1], states, [row])
                self.fail(request, EngineFailure("The run failed; the state is what it was before the call."))

    def drop(self, request: Request, error: CarouselError) -> None:
        """End a request that the scheduler holds no more, even if its row cannot be put back."""
        try:
            self._restore(request)
        finally:
            for member in request.members or (request,):
                if not member.ended:
                    self._fail(member, error)

    def _fail(self, request: Request, error: CarouselError) -> None:
        self._metrics.failed.add(1, self._clock() - request.arrived_at)
        request.end(error)

    def _count(self, requests: Sequence[Request], now: float) -> None:
        """Of those that went well, how many and how long they took."""
        seconds = [now - member.arrived_at for request in requests for member in request.members or (request,)]
        self._metrics.succeeded.add(len(seconds), sum(seconds))

    def _keep(self, not_kept: list[int], slots: NDArray[np.intp], states: Batched) -> None:
        if not not_kept:
            self._rows.scatter(slots, states)
        elif len(not_kept) < len(slots):
            kept = np.delete(np.arange(len(slots)), not_kept)
            self._rows.scatter(slots[kept], states, kept.tolist())

    def _save(self, begun: list[Request]) -> None:
        """Of requests that ran a first chunk which is not the last: their rows may have to be put back."""
        saved = self._rows.save([request.slot for request in begun])
        for request, undo in zip(begun, saved, strict=True):
            request.undo = undo

    def _result(self, request: Request, outputs: NDArray[np.float32], row: int, output: RunOutput) -> Result:
        """Of a request that ran its last chunk, whose outputs these are, `(T, ...)`."""
        request.steps_done += len(outputs)
        if request.outputs != "all":
            outputs = outputs[-1:] if request.outputs == "last" else outputs[:0]
        elif request.chunks:
            outputs = np.concatenate([*request.chunks, outputs])
        position = self._rows.position(request.slot) + request.steps_done
        state = self._rows.row(output.states, row) if request.return_state else None
        return Result(outputs, request.steps_done, position, state)

    def _conclude(self, request: Request, result: Result) -> None:
        if request.commit:
            self._rows.advance(request.slot, request.steps_done)
        else:
            self._restore(request)
        self._scheduler.finish(request)
        if request.members:
            for member, share in _answers(request, result):
                member.end(share)
        else:
            request.end(result)

    def _pack(self, endings: list[Ending], states: Batched) -> None:
        """Give each end its row's state as bytes."""
        packed = self._rows.pack(states, [ending.row for ending in endings])
        for ending, state in zip(endings, packed, strict=True):
            ending.state = state

    def _restore(self, request: Request) -> None:
        if request.undo is not None:
            self._rows.restore(request.slot, request.undo)
            request.undo = None


def _collect(request: Request, outputs: NDArray[np.float32]) -> None:
    """Note a chunk that is not the last."""
    if request.outputs == "all":
        request.chunks = request.chunks or []
        request.chunks.append(outputs)
    request.steps_done += len(outputs)


def _answers(request: Request, result: Result) -> list[tuple[Request, Result]]:
    """The request itself, or each one that it stands for, with its own result."""
    return list(shares(request, result)) if request.members else [(request, result)]
