"""A sequence goes on in another process: after a restart, or call by call beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from service.metrics import Metrics
from service.registry import Registry
from service.sequences import Sequences
from service.settings import Settings
from service.stores.opening import open_store
from service.stores.store import NUM_ANSWERS
from tests.service import onnx_models

pytestmark = pytest.mark.anyio

CALLS = 3 * NUM_ANSWERS + 1


class Process:
    """What one process has of its own."""

    def __init__(self, registry: Registry, sequences: Sequences) -> None:
        self.registry, self.sequences = registry, sequences

    async def begin(self) -> None:
        await self.sequences.create("t", self.registry.get("sum"), sequence_id="s")

    async def add_one(self, step: int) -> tuple[float, bool]:
        """The sum after it, and whether it was known already."""
        sequence = await self.sequences.find("t", "sum", "s")
        result = await self.sequences.step(sequence, np.ones((1, 1), np.float32), step=step)
        return float(result.outputs[-1, 0]), result.replayed


@asynccontextmanager
async def process(root: Path, setting: str) -> AsyncIterator[Process]:
    settings, metrics = Settings(model_repository=root, max_rows=4, max_chunk=4), Metrics()
    registry, store = Registry(settings, metrics), open_store(setting)
    await store.open()
    await registry.load()
    try:
        yield Process(registry, Sequences(registry, settings, metrics, store=store))
    finally:
        await registry.close(0)
        await store.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    onnx_models.running_sum(root, "sum")
    return root


@pytest.mark.parametrize("setting", ["sqlite", "redis"], indirect=True)
async def test_a_long_sequence_and_its_last_answers_outlive_the_process(root: Path, setting: str) -> None:
    async with process(root, setting) as first:
        await first.begin()
        for step in range(CALLS):
            assert await first.add_one(step) == (step + 1, False)
    async with process(root, setting) as second:
        for step in range(CALLS - NUM_ANSWERS, CALLS):
            assert await second.add_one(step) == (step + 1, True)
        assert await second.add_one(CALLS) == (CALLS + 1, False)


async def test_two_processes_take_turns_at_a_long_sequence(root: Path, redis_url: str) -> None:
    async with process(root, redis_url) as one, process(root, redis_url) as other:
        await one.begin()
        for step in range(CALLS):
            assert await (one, other)[step % 2].add_one(step) == (step + 1, False)
        for step in range(CALLS - NUM_ANSWERS, CALLS):
            assert await one.add_one(step) == (step + 1, True)
