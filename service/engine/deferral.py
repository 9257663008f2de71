"""Ends that wait for their commit, beside the runs that follow. What ends meanwhile goes into the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

import structlog

from service.engine.request import Commit, Ending
from service.engine.settlement import Settlement
from service.errors import CarouselError, EngineFailure
from service.metrics import EngineMetrics

log = structlog.get_logger(__name__)


class Deferral:
    """Of one engine. Their rows stay busy until they are concluded."""

    def __init__(self, model: str, settlement: Settlement, metrics: EngineMetrics) -> None:
        self._model = model
        self._settlement = settlement
        self._metrics = metrics
        self._waiting: list[Ending] = []
        self._task: asyncio.Task[None] | None = None

    def add(
        self,
        endings: list[Ending],
        commit: Commit,
        on_concluded: Callable[[], None],
        on_end: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """`on_concluded`: rows are free again. `on_end`: all of them are, unless it was a fault that ended the task."""
        self._waiting += endings
        if self._task is None:
            self._task = asyncio.create_task(self._commit_all(commit, on_concluded), name=f"commit {self._model}")
            self._task.add_done_callback(on_end)

    async def _commit_all(self, commit: Commit, on_concluded: Callable[[], None]) -> None:
        while self._waiting:
            waited, self._waiting = self._waiting, []
            if endings := self._settlement.sift_endings(waited):
                begin = perf_counter()
                self._settlement.conclude(endings, await self._outcomes(endings, commit))
                self._metrics.commit_seconds.observe(perf_counter() - begin)
            on_concluded()
        self._task = None

    async def _outcomes(self, endings: list[Ending], commit: Commit) -> list[CarouselError | None]:
        try:
            return await commit(endings)
        except CarouselError as error:
            return [error] * len(endings)
        except Exception:
            log.exception("commit_failed", model=self._model, rows=len(endings))
            failure = EngineFailure("The state could not be kept; it is what it was before the call.")
            return [failure] * len(endings)
