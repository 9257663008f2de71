"""What becomes of a run: which rows keep their new state, and the answer to each request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine.coalescing import shares
from service.engine.model_runner import RunOutput
from service.engine.request import Batch, Request, Result, State
from service.engine.scheduler import Scheduler
from service.engine.state_arena import Rows
from service.engine.verdicts import find_failures
from service.errors import CarouselError, EngineFailure
from service.model_spec import ModelSpec


class Settlement:
    """Ends requests so that a row moves only with its answer: a failed one is as it was before the call."""

    def __init__(self, spec: ModelSpec, rows: Rows, scheduler: Scheduler) -> None:
        self._spec = spec
        self._rows = rows
        self._scheduler = scheduler

    def settle(self, batch: Batch, slots: NDArray[np.intp], output: RunOutput, now: float) -> None:
        """Write the states that are to be kept, then answer."""
        failures = find_failures(batch, output, self._spec.states, now)
        self._keep([row for row in range(len(slots)) if row not in failures], batch, slots, output)
        for row, request in enumerate(batch.requests):
            if error := failures.get(row):
                self.fail(request, error)
            else:
                self._advance(request, row, batch.steps, output)

    def fail(self, request: Request, error: CarouselError) -> None:
        """End a request that was running; one that stands for several lets each of them try alone."""
        self._restore(request)
        if request.members:
            self._scheduler.split(request)
        else:
            self._scheduler.finish(request)
            _answer(request, error)

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
                _answer(member, error)

    def _keep(self, good: list[int], batch: Batch, slots: NDArray[np.intp], output: RunOutput) -> None:
        kept = []
        for row in good:
            request = batch.requests[row]
            last = request.steps_left == batch.steps
            if not last and request.undo is None:
                request.undo = self._rows.read(request.slot)
            if request.commit or not last:
                kept.append(row)
        if len(kept) == len(slots):
            self._rows.scatter(slots, output.states)
        elif kept:
            pairs = zip(output.states, self._spec.states, strict=True)
            self._rows.scatter(slots[kept], [state.take(kept, axis=spec.batch_axis) for state, spec in pairs])

    def _advance(self, request: Request, row: int, steps: int, output: RunOutput) -> None:
        last = request.steps_left == steps
        if request.outputs == "all":
            request.chunks.append(output.outputs[row])
        elif request.outputs == "last" and last:
            request.chunks.append(output.outputs[row, -1:])
        request.steps_done += steps
        if not last:
            self._scheduler.proceed(request)
            return
        state = self._state_of(row, output) if request.return_state else None
        begun_at = self._rows.position(request.slot)
        if request.commit:
            self._rows.advance(request.slot, request.steps_done)
        else:
            self._restore(request)
        self._scheduler.finish(request)
        y = request.chunks[0] if len(request.chunks) == 1 else self._join(request.chunks)
        if request.members:
            for member, result in shares(request, y, begun_at):
                _answer(member, result)
        else:
            _answer(request, Result(y, request.steps_done, begun_at + request.steps_done, state))

    def _join(self, chunks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate(chunks) if chunks else np.zeros((0, *self._spec.output.step_shape), np.float32)

    def _state_of(self, row: int, output: RunOutput) -> State:
        pairs = zip(output.states, self._spec.states, strict=True)
        return tuple(np.take(state, row, axis=spec.batch_axis) for state, spec in pairs)

    def _restore(self, request: Request) -> None:
        if request.undo is not None:
            self._rows.write(request.slot, request.undo)
            request.undo = None


def _answer(request: Request, outcome: Result | CarouselError) -> None:
    if isinstance(outcome, CarouselError):
        request.failed = True
    else:
        request.result = outcome
    if request.left is not None:
        request.left.set_result(None)
    elif request.future.cancelled():
        pass  # its caller is leaving, and will look at `result` and `failed`
    elif isinstance(outcome, CarouselError):
        request.future.set_exception(outcome)
    else:
        request.future.set_result(outcome)
