"""Schedulers for tests, with bounds small enough to meet, and what an engine does with their batches."""

from __future__ import annotations

import numpy as np

from service.engine.lane import Ladder
from service.engine.request import Batch, Request, nobody
from service.engine.scheduler import Scheduler

ROWS = {1: 4, 2: 4, 4: 3, 8: 2}
SHORT = {1: 2, 2: 1}


def scheduler_of(*, whole: bool = False, seconds: float = 1e-6) -> Scheduler:
    """`seconds` is what a step of a row costs."""
    return Scheduler(Ladder(ROWS, whole=whole), Ladder(SHORT, whole=whole), lambda rows, steps: rows * steps * seconds)


def request(slot: int, steps: int, *, deadline: float | None = None, tenant: str = "", at: float = 0.0) -> Request:
    return Request(slot, np.zeros((steps, 1), np.float32), at, nobody, deadline=deadline, tenant=tenant)


def run(scheduler: Scheduler, batch: Batch) -> list[Request]:
    """Settle a batch as the engine does; the requests that it ended."""
    ended = []
    for item in batch.requests:
        item.steps_done += batch.steps
        if item.steps_left:
            scheduler.proceed(item)
        else:
            scheduler.finish(item)
            ended.extend(item.members or [item])
    return ended


def drain(scheduler: Scheduler) -> list[Batch]:
    batches = []
    while batch := scheduler.next_batch(0.0):
        batches.append(Batch(list(batch.requests), batch.steps))
        run(scheduler, batch)
    return batches
