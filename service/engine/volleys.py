"""Steps of many sequences that came together and run together, as one piece.

Scheduling, settling and answering a row at a time cost more than the step of a small model. A volley pays for them
once. In exchange nothing else may be asked of its rows until it ends, and it does not share runs with others.
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
from service.engine.request import Array
from service.engine.state_arena import Rows
from service.engine.verdicts import non_finite, non_finite_rows
from service.errors import CarouselError, EngineFailure
from service.metrics import EngineMetrics
from service.model_spec import ModelSpec

States = list[NDArray[np.float32]]
"""Of many rows, batched as the graph has them."""
Run = Callable[[Array, States], Awaitable[RunOutput]]
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
        rows: Rows,
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
        """Run the next one, write what its rows may keep, then tell its end."""
        volley = self._take()
        self._metrics.queue_seconds.observe(self._clock() - volley.arrived_at, len(volley.slots))
        before = self._rows.gather(volley.slots)
        try:
            self._settle(volley, *await self._run(volley, before, run))
        except Exception:
            log.exception("run_failed", model=self._spec.name, rows=len(volley.slots), steps=volley.inputs.shape[1])
            self._rows.scatter(volley.slots, before)
            volley.fail(EngineFailure("The run failed; the state is what it was before the call."))
        self._end(volley)

    def drop_all(self, error: CarouselError) -> None:
        while self._waiting:
            volley = self._take()
            volley.fail(error)
            self._end(volley)

    def _take(self) -> Volley:
        tenant, queue = next(iter(self._waiting.items()))
        del self._waiting[tenant]
        volley = queue.popleft()
        if queue:
            self._waiting[tenant] = queue
        return volley

    async def _run(self, volley: Volley, states: States, run: Run) -> tuple[NDArray[np.float32], States]:
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

    def _settle(self, volley: Volley, outputs: NDArray[np.float32], states: States) -> None:
        steps = volley.inputs.shape[1]
        axes = [spec.batch_axis for spec in self._spec.states]
        for tensor, axis in ((outputs, 0), *zip(states, axes, strict=True)):
            for row in non_finite_rows(tensor, axis):
                volley.errors.setdefault(row, non_finite(0, steps))
        slots = volley.slots
        if volley.errors:
            kept = [row for row in range(len(slots)) if row not in volley.errors]
            slots = slots[kept]
            states = [state.take(kept, axis=axis) for state, axis in zip(states, axes, strict=True)]
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
