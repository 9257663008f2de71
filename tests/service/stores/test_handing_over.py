"""A sequence goes on in another process: after a restart, or call by call beside it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.departures import QUIET_SECONDS
from service.errors import ModelNotReady, SequenceGone
from service.metrics import Metrics
from service.registry import Registry
from service.sequences import Sequences
from service.settings import Settings
from service.stores.opening import open_store
from service.stores.store import NUM_ANSWERS, Store
from tests.service import onnx_models

pytestmark = pytest.mark.anyio

CALLS = 3 * NUM_ANSWERS + 1


class Process:
    """What one process has of its own."""

    def __init__(self, settings: Settings, metrics: Metrics, store: Store) -> None:
        self.now = 0.0
        """By the registry's clock."""
        self.metrics = metrics
        self.registry = Registry(settings, metrics, lambda: self.now)
        self.sequences = self.registry.holder = Sequences(self.registry, settings, metrics, store=store)

    async def begin(self, *, tentative: bool = False) -> None:
        await self.sequences.create("t", self.registry.get("sum"), sequence_id="s", tentative=tentative)

    async def lose(self, version: Path) -> None:
        """Its folder is removed, and the version let go."""
        shutil.rmtree(version)
        await self.registry.refresh()
        await self.registry.let_go()
        self.now += QUIET_SECONDS
        await self.registry.let_go()

    async def add_one(self, step: int) -> tuple[float, bool]:
        """The sum after it, and whether it was known already."""
        sequence = await self.sequences.find("t", "sum", "s")
        result = await self.sequences.step(sequence, np.ones((1, 1), np.float32), step=step)
        return float(result.outputs[-1, 0]), result.replayed


@asynccontextmanager
async def process(root: Path, setting: str, **more: Any) -> AsyncIterator[Process]:
    settings, metrics = Settings(model_repository=root, max_rows=4, max_chunk=4, **more), Metrics()
    opened = Process(settings, metrics, store := open_store(setting))
    await store.open()
    await opened.registry.load()
    try:
        yield opened
    finally:
        await opened.registry.close(0)
        await store.close()


@pytest.fixture
def two_versions(tmp_path: Path) -> Path:
    for version in (1, 2):
        onnx_models.running_sum(tmp_path, "sum", version)
    return tmp_path


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


async def test_a_version_that_is_elsewhere_only_is_waited_for(
    two_versions: Path, tmp_path_factory: pytest.TempPathFactory, redis_url: str
) -> None:
    behind = tmp_path_factory.mktemp("behind")
    onnx_models.running_sum(behind, "sum", 1)
    async with process(two_versions, redis_url) as one, process(behind, redis_url) as other:
        await one.begin()
        with pytest.raises(ModelNotReady, match="not here yet"):
            await other.add_one(0)
        onnx_models.running_sum(behind, "sum", 2)
        await other.registry.refresh()
        assert await other.add_one(0) == (1, False)


@pytest.mark.parametrize("setting", ["sqlite", "redis"], indirect=True)
async def test_a_sequence_ends_with_the_version_that_it_began_with(two_versions: Path, setting: str) -> None:
    async with process(two_versions, setting) as first:
        await first.begin()
        await first.add_one(0)
    async with process(two_versions, setting) as second:
        await second.lose(two_versions / "sum" / "2")
        with pytest.raises(SequenceGone, match="version_unloaded"):
            await second.add_one(1)
    if setting.startswith("sqlite"):
        async with process(two_versions, setting) as third:
            with pytest.raises(SequenceGone, match="version_unloaded"):
                await third.add_one(1)


@pytest.mark.parametrize("tentative", [False, True], ids=["by a call of its own", "by its first steps"])
@pytest.mark.parametrize("setting", ["sqlite", "redis"], indirect=True)
async def test_one_that_ended_with_its_version_can_be_begun_again(
    two_versions: Path, setting: str, tentative: bool
) -> None:
    async with process(two_versions, setting) as first:
        await first.begin()
        assert await first.add_one(0) == (1, False)
    async with process(two_versions, setting) as second:
        await second.lose(two_versions / "sum" / "2")
        await second.begin(tentative=tentative)
        assert await second.add_one(0) == (1, False)
        assert second.metrics.sequences_of("sum")["ended"]["version_unloaded"] == 1


@pytest.mark.parametrize("setting", ["sqlite", "redis"], indirect=True)
async def test_what_was_told_to_have_ended_by_unloading_stays_so(two_versions: Path, setting: str) -> None:
    async with process(two_versions, setting) as first:
        await first.begin()
        await first.add_one(0)
    async with process(two_versions, setting, model_control=True) as second:
        await second.registry.unload_model("sum")
        for _ in range(2):
            with pytest.raises(SequenceGone, match="version_unloaded"):
                await second.add_one(1)
            await second.registry.load_model("sum")
        await second.begin()
        assert await second.add_one(0) == (1, False)
