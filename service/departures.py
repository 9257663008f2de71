"""Versions that leave: they take no new work, and their engines stop once nothing uses them any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from service.loading import LoadedModel
from service.stores.store import VERSION_UNLOADED

QUIET_SECONDS = 10.0
"""How long a version that leaves must have done nothing before its engine stops. A call that looked it up before it
left has reached the engine by then."""

log = structlog.get_logger(__name__)


class Holder(Protocol):
    """Whoever keeps versions in use beyond single calls: the sequences."""

    def num_held(self, model: LoadedModel) -> int: ...

    async def end_all(self, model: LoadedModel, reason: str) -> None:
        """End every sequence of the version after the calls under way, and forget the version."""


@dataclass(slots=True)
class _Leaving:
    """A version that takes no new work, and when it was last seen in use."""

    model: LoadedModel
    used_at: float
    num_runs: int = -1
    ends_sequences: bool = False
    """Unloaded: it does not wait for sequences to end by themselves."""


class Departures:
    """Every version that is on its way out of this process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._leaving: list[_Leaving] = []
        self.holder: Holder | None = None

    def add(self, model: LoadedModel) -> None:
        self._leaving.append(_Leaving(model, self._clock()))
        log.info("model_leaves", model=model.name, version=model.version)

    def find(self, name: str, version: int) -> LoadedModel | None:
        """For a sequence that began with it, and may go on."""
        for left in self._leaving:
            if (left.model.name, left.model.version) == (name, version) and not left.ends_sequences:
                return left.model
        return None

    def models(self) -> list[LoadedModel]:
        return [left.model for left in self._leaving]

    async def end_sequences(self, name: str) -> None:
        """Of all versions of a model that leave, each after its calls under way: it is unloaded."""
        leaving = [left for left in self._leaving if left.model.name == name]
        for left in leaving:
            left.ends_sequences = True
        await asyncio.gather(*(self._end_sequences(left.model) for left in leaving))

    async def let_go(self) -> None:
        """Stop the engines of versions that nothing uses any more. To be called every second or so."""
        for left in list(self._leaving):
            if left.ends_sequences and self._num_held(left.model):
                await self._end_sequences(left.model)  # of a call that found the model before it was unloaded
            if self._is_in_use(left):
                continue
            await self._end_sequences(left.model)
            self._leaving.remove(left)
            await left.model.engine.stop()
            log.info("model_unloaded", model=left.model.name, version=left.model.version)

    def _is_in_use(self, left: _Leaving) -> bool:
        engine, now = left.model.engine, self._clock()
        if engine.num_slots_used or engine.num_runs != left.num_runs or self._num_held(left.model):
            left.num_runs, left.used_at = engine.num_runs, now
        return now - left.used_at < QUIET_SECONDS

    def _num_held(self, model: LoadedModel) -> int:
        return self.holder.num_held(model) if self.holder else 0

    async def _end_sequences(self, model: LoadedModel) -> None:
        if self.holder:
            await self.holder.end_all(model, VERSION_UNLOADED)
