"""Steps of many sequences that came together and run together, as one piece.

Scheduling, settling and answering a row at a time cost more than the step of a small model. A volley pays for them
once. In exchange nothing else may be asked of its rows until it ends. Volleys of equally many steps that wait together
run together, so that many connections do not split batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import structlog
from numpy.typing import NDArray

from service.engine.lane import Ladder
from service.engine.model_runner import RunOutput
from service.engine.request import Array, Batched
from service.engine.state_arena import Arena, non_finite_rows
from service.engine.verdicts import non_finite
from service.errors import CarouselError, EngineFailure
from service.metrics import EngineMetrics
from service.model_spec import ModelSpec

Run = Callable[[Array, Batched], Awaitable[RunOutput]]
"""Runs the model on inputs `(B, T, ...)`."""

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Volley:
    """The next T steps of N rows, each of which succeeds or fails by itself."""

    slots: NDArray[np.intp]
    """(N,), all different."""
    inputs: Array
    """(N, T, ...)"""
    arrived_at: float
    """Engine clock, seconds."""
    on_end: Callable[[Volley], None]
    """Told once, when there are outputs, or an error for every row. It must not raise."""
    tenant: str = ""
    outputs: NDArray[np.float32] | None = None
    """(N, T, ...)"""
    errors: dict[int, CarouselError] = field(default_factory=dict)
    """By row. Those rows are as they were before."""
    cost_seconds: float = 0.0
    """What the queue counts for it."""

    def fail(self, error: CarouselError) -> None:
        """Every row of it, for one reason."""
        self.errors = dict.fromkeys(range(len(self.slots)), error)


class Volleys:
    """Those that wait. Tenants take turns; of one tenant, first come, first served."""

    def __init__(
        self,
        spec: ModelSpec,
        rows: Arena,
        ladder: Ladder,
        predict: Callable[[int, int], float],
        metrics: EngineMetrics,
        clock: Callable[[], float],
    ) -> None:
        """`predict(rows, steps)` in seconds."""
        self._spec = spec
        self._rows = rows
        self._ladder = ladder
        self._predict = predict
        self._metrics = metrics
        self._clock = clock
        self._waiting: dict[str, deque[Volley]] = {}  # by tenant, whose turn it is first
        self.num_rows = 0
        """Of all that wait or run."""
        self.seconds = 0.0
        """Predicted, of all that wait or run."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def most_rows(self, steps: int) -> int:
        """Rows of one volley, at most."""
        return self._ladder.max_rows(self._ladder.rung(steps))

    def add(self, volley: Volley) -> None:
        rows, steps = volley.inputs.shape[:2]
        chunk = self._ladder.rung(steps)
        volley.cost_seconds = self._predict(rows, chunk) * steps / chunk
        self._waiting.setdefault(volley.tenant, deque()).append(volley)
        self.num_rows += rows
        self.seconds += volley.cost_seconds

    async def run_next(self, run: Run) -> None:
        """Run the next one and what fits beside it, write what their rows may keep, then tell their ends."""
        volleys = self._take_together()
        now = self._clock()
        for volley in volleys:
            self._metrics.queue_seconds.observe(now - volley.arrived_at, len(volley.slots))
        whole = _joined(volleys)
        await self._run_whole(whole, run)
        if whole is not volleys[0]:
            _deal(whole, volleys)
        for volley in volleys:
            self._end(volley)

    async def _run_whole(self, volley: Volley, run: Run) -> None:
        before = None
        try:
            before = self._rows.gather(volley.slots)
            self._settle(volley, *await self._run(volley, before, run))
        except Exception:
            log.exception("run_failed", model=self._spec.name, rows=len(volley.slots), steps=volley.inputs.shape[1])
            if before is not None:
                self._rows.scatter(volley.slots, before)
            volley.fail(EngineFailure("The run failed; the state is what it was before the call."))

    def drop_all(self, error: CarouselError) -> None:
        while self._waiting:
            volley = self._take()
            volley.fail(error)
            self._end(volley)

    def _take(self, tenant: str | None = None) -> Volley:
        """The next one of a tenant, or of the one whose turn it is."""
        tenant = next(iter(self._waiting)) if tenant is None else tenant
        queue = self._waiting.pop(tenant)
        volley = queue.popleft()
        if queue:
            self._waiting[tenant] = queue
        return volley

    def _take_together(self) -> list[Volley]:
        """The next one, and of each tenant in turn those next in line that have as many steps, while there are rows."""
        taken = [self._take()]
        steps = taken[0].inputs.shape[1]
        room = self.most_rows(steps) - len(taken[0].slots)
        fits = True
        while fits:
            fits = False
            for tenant, queue in list(self._waiting.items()):
                rows = len(queue[0].slots)
                if queue[0].inputs.shape[1] == steps and rows <= room:
                    taken.append(self._take(tenant))
                    room -= rows
                    fits = True
        return taken

    async def _run(self, volley: Volley, states: Batched, run: Run) -> tuple[NDArray[np.float32], Batched]:
        """All outputs, (N, T, ...), and the states after them."""
        rows, steps, at = len(volley.slots), volley.inputs.shape[1], 0
        pieces: list[NDArray[np.float32]] = []
        begin = perf_counter()
        while at < steps:
            chunk = self._ladder.rung(steps - at)
            output = await run(np.ascontiguousarray(volley.inputs[:, at : at + chunk]), states)
            pieces.append(output.outputs)
            states, at = output.states, at + chunk
            ran = perf_counter()
            self._metrics.observe_run(rows, chunk, output.seconds, ran - begin - output.seconds, 0.0)
            begin = ran
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1), states

    def _settle(self, volley: Volley, outputs: NDArray[np.float32], states: Batched) -> None:
        steps = volley.inputs.shape[1]
        for row in (*non_finite_rows(outputs, 0), *self._rows.non_finite(states)):
            volley.errors.setdefault(row, non_finite(0, steps))
        slots = volley.slots
        if volley.errors:
            kept = [row for row in range(len(slots)) if row not in volley.errors]
            slots = slots[kept]
            self._rows.scatter(slots, states, kept)
        else:
            self._rows.scatter(slots, states)
        for slot in slots.tolist():
            self._rows.advance(slot, steps)
        volley.outputs = outputs

    def _end(self, volley: Volley) -> None:
        rows, failed, seconds = len(volley.slots), len(volley.errors), self._clock() - volley.arrived_at
        self.num_rows -= rows
        self.seconds = self.seconds - volley.cost_seconds if self.num_rows else 0.0  # no rounding is carried on
        self._metrics.failed.add(failed, failed * seconds)
        self._metrics.succeeded.add(rows - failed, (rows - failed) * seconds)
        volley.on_end(volley)


def _joined(volleys: list[Volley]) -> Volley:
    """All their rows, as of one."""
    if len(volleys) == 1:
        return volleys[0]
    slots = np.concatenate([volley.slots for volley in volleys])
    inputs = np.concatenate([volley.inputs for volley in volleys])
    return Volley(slots, inputs, volleys[0].arrived_at, _nobody)


def _deal(whole: Volley, volleys: list[Volley]) -> None:
    """Give each what its rows came to."""
    at = 0
    for volley in volleys:
        end = at + len(volley.slots)
        if whole.outputs is not None:
            volley.outputs = whole.outputs[at:end]
        volley.errors = {row - at: error for row, error in whole.errors.items() if at <= row < end}
        at = end


def _nobody(volley: Volley) -> None:
    """Asks how it ended."""
