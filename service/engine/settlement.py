"""What becomes of a run: which rows keep their new state, and the answer to each request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from service.engine.coalescing import shares
from service.engine.model_runner import RunOutput
from service.engine.request import Batch, Ending, Request, Result, State
from service.engine.scheduler import Scheduler
from service.engine.state_arena import Rows
from service.engine.verdicts import caller_gone, find_failures, late, shut_down
from service.errors import CarouselError, EngineFailure, OutOfTurn
from service.metrics import EngineMetrics
from service.model_spec import ModelSpec


class Settlement:
    """Ends requests so that a row moves only with its answer: a failed one is as it was before the call."""

    def __init__(
        self, spec: ModelSpec, rows: Rows, scheduler: Scheduler, metrics: EngineMetrics, clock: Callable[[], float]
    ) -> None:
        self._spec = spec
        self._rows = rows
        self._scheduler = scheduler
        self._metrics = metrics
        self._clock = clock

    def sift(self, requests: list[Request], now: float, *, out_of_time: bool) -> list[Request]:
        """Those that are to run; the others end."""
        wanted = []
        for request in requests:
            if request.abandoned:
                self.fail(request, caller_gone())
            elif out_of_time:
                self.fail(request, shut_down())
            elif request.at is not None and not request.steps_done and request.at != self._rows.position(request.slot):
                self.fail(request, OutOfTurn("A call before this one failed, so its step was not reached."))
            elif request.deadline is not None and request.deadline < now:
                self.fail(request, late())
            else:
                if not request.steps_done:
                    self._metrics.queue_seconds.observe(now - request.arrived_at)
                wanted.append(request)
        return wanted

    def settle(
        self, batch: Batch, slots: NDArray[np.intp], output: RunOutput, now: float, *, defer: bool = False
    ) -> list[Ending]:
        """Write the states that are to be kept, then answer. `defer`: ends that have an owner come back, undone."""
        failures = find_failures(batch, output, self._spec.states, now)
        kept: list[int] = []
        going_on: list[Request] = []
        endings: list[Ending] = []
        deferred: list[Ending] = []
        for row, request in enumerate(batch.requests):
            if failures and row in failures:
                self.fail(request, failures[row])
                continue
            last = len(request.inputs) == request.steps_done + batch.steps
            if not last and request.undo is None:
                request.undo = self._rows.read(request.slot)
            self._collect(request, row, batch.steps, output)
            if not last:
                going_on.append(request)
                kept.append(row)
            elif defer and request.commit and request.owner is not None:
                deferred.append(self._ending(request, row, output))
            else:
                endings.append(self._ending(request, row, output))
                if request.commit:
                    kept.append(row)
        self._keep(kept, slots, output.states)
        for request in going_on:
            self._scheduler.proceed(request)
        for ending in endings:
            self._conclude(ending)
        self._count(endings, now)
        if deferred:
            self._pack(deferred, output.states)
        return deferred

    def sift_endings(self, endings: list[Ending]) -> list[Ending]:
        """Of ends that waited for others to be committed, those that are still wanted; the others fail."""
        now, wanted = self._clock(), []
        for ending in endings:
            request = ending.request
            if request.abandoned:
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
            rows = [ending.row for ending in run]
            tensors = zip(run[0].states, self._spec.states, strict=True)
            taken = [state.take(rows, axis=spec.batch_axis) for state, spec in tensors]
            self._rows.scatter(np.array([ending.request.slot for ending in run], np.intp), taken)
        for ending, error in pairs:
            if error is None:
                self._conclude(ending)
            else:
                self.fail(ending.request, error)
        self._count([ending for ending, error in pairs if error is None], self._clock())

    def fail(self, request: Request, error: CarouselError) -> None:
        """End a request that was running; one that stands for several lets each of them try alone."""
        self._restore(request)
        if request.members:
            self._scheduler.split(request)
        else:
            self._scheduler.finish(request)
            self._fail(request, error)

    def fail_all(self, batch: Batch, slots: NDArray[np.intp], states: list[NDArray[np.float32]]) -> None:
        """End what is left of a batch that went wrong, `states` being what its rows held before."""
        for row, request in enumerate(batch.requests):
            if self._scheduler.is_running(request):
                pairs = zip(states, self._spec.states, strict=True)
                self._rows.write(int(slots[row]), tuple(np.take(s, row, axis=spec.batch_axis) for s, spec in pairs))
                self.fail(request, EngineFailure("The run failed; the state is what it was before the call."))

    def drop(self, request: Request, error: CarouselError) -> None:
        """End a request that the scheduler holds no more."""
        self._restore(request)
        for member in request.members or (request,):
            if not member.ended:
                self._fail(member, error)

    def _fail(self, request: Request, error: CarouselError) -> None:
        self._metrics.failed.add(1, self._clock() - request.arrived_at)
        request.end(error)

    def _count(self, endings: Sequence[Ending], now: float) -> None:
        """Of those that went well, how many and how long they took."""
        seconds = [now - request.arrived_at for ending in endings for request, _ in ending.answers]
        self._metrics.succeeded.add(len(seconds), sum(seconds))

    def _keep(self, kept: list[int], slots: NDArray[np.intp], states: Sequence[NDArray[np.float32]]) -> None:
        if len(kept) == len(slots):
            self._rows.scatter(slots, states)
        elif kept:
            pairs = zip(states, self._spec.states, strict=True)
            self._rows.scatter(slots[kept], [state.take(kept, axis=spec.batch_axis) for state, spec in pairs])

    def _collect(self, request: Request, row: int, steps: int, output: RunOutput) -> None:
        request.steps_done += steps
        if request.outputs == "all":
            request.chunks.append(output.outputs[row])
        elif request.outputs == "last" and not request.steps_left:
            request.chunks.append(output.outputs[row, -1:])

    def _ending(self, request: Request, row: int, output: RunOutput) -> Ending:
        begun_at = self._rows.position(request.slot)
        y = request.chunks[0] if len(request.chunks) == 1 else self._join(request.chunks)
        if request.members:
            return Ending(request, list(shares(request, y, begun_at)), row, output.states)
        state = self._state_of(row, output) if request.return_state else None
        result = Result(y, request.steps_done, begun_at + request.steps_done, state)
        return Ending(request, [(request, result)], row, output.states)

    def _conclude(self, ending: Ending) -> None:
        request = ending.request
        if request.commit:
            self._rows.advance(request.slot, request.steps_done)
        else:
            self._restore(request)
        self._scheduler.finish(request)
        for member, result in ending.answers:
            member.end(result)

    def _pack(self, endings: list[Ending], states: Sequence[NDArray[np.float32]]) -> None:
        """Give each end its row's state as bytes: one copy for all of them."""
        rows = [ending.row for ending in endings]
        parts = [
            np.moveaxis(state, spec.batch_axis, 0)[rows].reshape(len(rows), -1)
            for state, spec in zip(states, self._spec.states, strict=True)
        ]
        packed = np.concatenate(parts, axis=1).tobytes()
        size = len(packed) // len(rows)
        for place, ending in enumerate(endings):
            ending.state = packed[place * size : (place + 1) * size]

    def _join(self, chunks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate(chunks) if chunks else np.zeros((0, *self._spec.output.step_shape), np.float32)

    def _state_of(self, row: int, output: RunOutput) -> State:
        pairs = zip(output.states, self._spec.states, strict=True)
        return tuple(np.take(state, row, axis=spec.batch_axis) for state, spec in pairs)

    def _restore(self, request: Request) -> None:
        if request.undo is not None:
            self._rows.write(request.slot, request.undo)
            request.undo = None
