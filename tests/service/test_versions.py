"""Versions come and go while others serve."""

from __future__ import annotations

import asyncio
import gc
import shutil
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from service.departures import QUIET_SECONDS
from service.errors import (
    ModelNotFound,
    ModelNotReady,
    SequenceGone,
    SequenceNotFound,
    Unavailable,
    VersionNotFound,
)
from service.metrics import Metrics
from service.registry import Registry
from service.sequence import Sequence
from service.sequences import Sequences
from service.settings import Settings
from service.stores.store import TOMBSTONE_SECONDS
from tests.service import onnx_models

pytestmark = pytest.mark.anyio

ONE = np.ones((1, 1), np.float32)


class House:
    """A registry over `root`, the sequences on it, and a clock that stands still."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, 0.0
        settings = Settings(model_repository=root, model_control=True, max_rows=4, max_chunk=4, max_sequences=1000)
        self.metrics = Metrics()
        self.registry = Registry(settings, self.metrics, lambda: self.now)
        self.sequences = Sequences(self.registry, settings, self.metrics, lambda: self.now)
        self.registry.holder = self.sequences

    def publish(self, version: int, content: bytes | None = None) -> None:
        """Rename a version of `sum` into place."""
        path = onnx_models.running_sum(self.root / ".unfinished", "sum", version)
        if content is not None:
            path.write_bytes(content)
        target = self.root / "sum" / str(version)
        target.parent.mkdir(exist_ok=True)
        path.parent.rename(target)

    def remove(self, version: int) -> None:
        shutil.rmtree(self.root / "sum" / str(version))

    async def begin(self, sequence_id: str = "s") -> Sequence:
        return await self.sequences.create("t", self.registry.get("sum"), sequence_id=sequence_id)

    async def step(self, sequence: Sequence) -> float:
        return float((await self.sequences.step(sequence, ONE)).outputs[-1, 0])

    async def wait(self, seconds: float = QUIET_SECONDS) -> None:
        """Let time pass, the registry looking after its leaving versions at both ends."""
        await self.registry.let_go()
        self.now += seconds
        await self.registry.let_go()

    @property
    def states(self) -> dict[int, str]:
        return {entry.version: str(entry.state) for entry in self.registry.index()}

    def number(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"carousel_{name}", labels)


@asynccontextmanager
async def house_with(root: Path, *versions: int) -> AsyncIterator[House]:
    house = House(root)
    for version in versions:
        house.publish(version)
    await house.registry.load()
    try:
        yield house
    finally:
        await house.registry.close(0)


@contextmanager
def no_collector() -> Iterator[None]:
    """As in the server: whatever was loaded at the start is freed by its reference count or never."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def test_a_new_version_serves_new_sequences_and_running_ones_keep_theirs(tmp_path: Path):
    async with house_with(tmp_path, 1) as house:
        old = await house.begin("old")
        house.publish(2)
        await house.registry.refresh()
        new = await house.begin("new")
        assert (old.model.version, new.model.version) == (1, 2)
        assert [await house.step(old), await house.step(old), await house.step(new)] == [1.0, 2.0, 1.0]
        assert house.registry.get("sum", 1) is old.model, "any version on disk can be asked for"
        assert house.states == {1: "READY", 2: "READY"}
        assert house.number("models_ready") == 2.0


async def test_a_version_that_is_removed_stays_for_its_sequences_and_takes_no_new_ones(tmp_path: Path):
    async with house_with(tmp_path, 1, 2) as house:
        sequence = await house.begin()
        house.remove(2)
        await house.registry.refresh()
        assert house.registry.get("sum").version == 1, "the newest that is there"
        with pytest.raises(VersionNotFound):
            house.registry.get("sum", 2)
        await house.wait()
        assert await house.step(sequence) == 1.0
        assert house.states == {1: "READY", 2: "UNLOADING"}
        assert house.number("models_ready") == 1.0
        await house.sequences.delete(sequence)
        await house.wait(QUIET_SECONDS - 1)
        assert house.states == {1: "READY", 2: "UNLOADING"}
        await house.wait(1)
        assert house.states == {1: "READY"}


async def test_a_model_that_leaves_is_counted_to_the_end_and_lists_its_sequences(tmp_path: Path):
    async with house_with(tmp_path, 1) as house:
        sequence = await house.begin()
        house.remove(1)
        await house.registry.refresh()
        await house.sequences.count()
        told = house.metrics.sequences_of("sum")
        assert (told["active"], told["state_bytes"]) == (1, 4)
        assert [listed.id for listed in await house.sequences.list("t", "sum")] == ["s"]
        await house.sequences.delete(sequence)
        await house.wait()
        await house.sequences.count()
        told = house.metrics.sequences_of("sum")
        assert (told["active"], told["state_bytes"]) == (0, 0)
        with pytest.raises(ModelNotFound):
            await house.sequences.list("t", "sum")


async def test_what_was_let_go_leaves_memory(tmp_path: Path):
    async with house_with(tmp_path, 1, 2) as house:
        with no_collector():
            sequence = await house.begin()
            await house.step(sequence)
            engine = weakref.ref(sequence.model.engine._runner)  # what holds onnxruntime's session
            await house.sequences.delete(sequence)
            del sequence
            house.remove(2)
            await house.registry.refresh()
            await house.wait()
            assert engine() is None


async def test_a_call_that_found_its_version_before_it_was_removed_still_runs(tmp_path: Path):
    async with house_with(tmp_path, 1) as house:
        model = house.registry.get("sum")
        house.remove(1)
        await house.registry.refresh()
        await house.wait(QUIET_SECONDS - 1)
        assert (await model.engine.infer_once(ONE)).outputs.tolist() == [[1.0]]
        await house.wait(QUIET_SECONDS - 1)
        assert (await model.engine.infer_once(ONE)).outputs.tolist() == [[1.0]], "it was in use meanwhile"
        await house.wait()
        with pytest.raises(ModelNotFound):
            house.registry.get("sum")


async def test_a_broken_new_version_is_listed_and_tried_again_when_its_file_changes(tmp_path: Path):
    async with house_with(tmp_path, 1) as house:
        house.publish(2, b"half a mod")
        await house.registry.refresh()
        assert house.registry.get("sum").version == 1
        assert house.states == {1: "READY", 2: "UNAVAILABLE"}
        assert "onnxruntime cannot load" in house.registry.index()[1].reason
        assert (house.number("models_ready"), house.number("models_failed")) == (1.0, 1.0)
        with pytest.raises(ModelNotReady, match="could not be loaded"):
            house.registry.get("sum", 2)
        house.remove(2)
        house.publish(2)
        await house.registry.refresh()
        assert house.registry.get("sum").version == 2
        assert (house.number("models_ready"), house.number("models_failed")) == (2.0, 0.0)


async def test_a_file_that_is_changed_in_place_does_not_touch_the_version_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    async with house_with(tmp_path, 1) as house:
        model = house.registry.get("sum")
        (tmp_path / "sum" / "1" / "model.onnx").write_bytes(b"other bytes")
        for _ in range(2):
            await house.registry.refresh()
        assert house.registry.get("sum") is model
        assert capsys.readouterr().out.count("model_file_changed") == 1, "told once"


async def test_a_file_that_is_removed_without_its_folder_is_gone_too(tmp_path: Path):
    async with house_with(tmp_path, 1, 2) as house:
        (tmp_path / "sum" / "2" / "model.onnx").unlink()
        await house.registry.refresh()
        assert house.registry.get("sum").version == 1


async def test_a_repository_that_cannot_be_read_changes_nothing(tmp_path: Path):
    root = tmp_path / "repository"
    root.mkdir()
    async with house_with(root, 1) as house:
        root.rename(tmp_path / "away")
        await house.registry.refresh()
        assert house.states == {1: "READY"}


async def test_unloading_ends_sequences_with_the_reason_for_an_hour(tmp_path: Path):
    async with house_with(tmp_path, 1, 2) as house:
        for number in range(300):
            await house.begin(f"s{number}")
        await house.registry.unload_model("sum")
        for _ in range(2):
            with pytest.raises(SequenceGone) as gone:
                await house.sequences.find("t", "sum", "s0")
            assert gone.value.fields["reason"] == "version_unloaded"
            await house.wait()
        with pytest.raises(ModelNotReady, match="unloaded"):
            await house.begin("another")
        assert house.states == {1: "UNAVAILABLE", 2: "UNAVAILABLE"}
        await house.sequences.count()
        told = house.metrics.sequences_of("sum")
        assert (told["active"], told["ended"]["version_unloaded"]) == (0, 300)
        assert (house.number("models_ready"), house.number("models_failed")) == (0.0, 0.0)
        house.now += TOMBSTONE_SECONDS + 1
        while await house.sequences.expire():
            pass
        await house.registry.load_model("sum")
        with pytest.raises(SequenceNotFound):
            await house.sequences.find("t", "sum", "s0")


async def test_unloading_lets_the_calls_of_a_sequence_finish_that_came_before(tmp_path: Path):
    async with house_with(tmp_path, 1) as house:
        sequence = await house.begin()
        before = asyncio.create_task(house.sequences.step(sequence, np.ones((4000, 1), np.float32)))
        await asyncio.sleep(0)
        in_line = asyncio.create_task(house.sequences.read_state(sequence))
        await asyncio.sleep(0)
        unload = asyncio.create_task(house.registry.unload_model("sum"))
        for _ in range(8):  # until it stands in line
            await asyncio.sleep(0)
        after = asyncio.create_task(house.sequences.step(sequence, ONE))
        assert (await before).outputs[-1, 0] == 4000.0
        assert (await in_line)[0] == 4000
        with pytest.raises(SequenceGone, match="version_unloaded"):
            await after
        await unload


async def test_unloading_lets_predictions_finish_that_came_before(tmp_path: Path):
    async with house_with(tmp_path, 1) as house:
        predict = asyncio.create_task(house.registry.get("sum").engine.infer_once(np.ones((4000, 1), np.float32)))
        await asyncio.sleep(0)
        await house.registry.unload_model("sum")
        await house.wait()
        assert house.states == {1: "UNLOADING"}, "however long they take"
        assert (await predict).outputs[-1, 0] == 4000.0
        await house.wait()
        assert house.states == {1: "UNAVAILABLE"}


async def test_what_was_unloaded_can_be_loaded_again_and_until_then_stays_away(tmp_path: Path):
    async with house_with(tmp_path, 1) as house:
        await house.registry.unload_model("sum")
        house.publish(2)
        await house.registry.refresh()
        assert house.states == {1: "UNLOADING", 2: "UNAVAILABLE"}
        await house.registry.load_model("sum")
        assert await house.step(await house.begin()) == 1.0
        assert house.registry.get("sum").version == 2
        await house.wait()
        assert house.states == {1: "READY", 2: "READY"}
        assert await house.step(await house.begin("again")) == 1.0


async def test_a_sequence_begun_by_a_call_that_found_the_model_just_before_it_was_unloaded_ends_too(tmp_path: Path):
    async with house_with(tmp_path, 1) as house:
        model = house.registry.get("sum")
        await house.registry.unload_model("sum")
        await house.sequences.create("t", model, sequence_id="late")
        await house.registry.let_go()
        with pytest.raises(SequenceGone, match="version_unloaded"):
            await house.sequences.find("t", "sum", "late")


async def test_unloading_while_it_loads_leaves_it_unloaded(tmp_path: Path):
    async with house_with(tmp_path, 1) as house:
        house.publish(2)
        refresh = asyncio.create_task(house.registry.refresh())
        while house.states != {1: "READY", 2: "LOADING"}:  # noqa: ASYNC110
            await asyncio.sleep(0)
        with pytest.raises(ModelNotReady, match="being loaded"):
            house.registry.get("sum", 2)
        await house.registry.unload_model("sum")
        await refresh
        assert house.states == {1: "UNLOADING", 2: "UNAVAILABLE"}


async def test_control_is_refused_unless_it_is_allowed(tmp_path: Path):
    registry = Registry(Settings(model_repository=tmp_path), Metrics())
    for call in (registry.load_model, registry.unload_model):
        with pytest.raises(Unavailable, match="CAROUSEL_MODEL_CONTROL=1"):
            await call("sum")


async def test_control_of_a_model_that_is_not_there_or_broken(tmp_path: Path):
    async with house_with(tmp_path) as house:
        for call in (house.registry.load_model, house.registry.unload_model):
            with pytest.raises(ModelNotFound):
                await call("sum")
        house.publish(1, b"")
        with pytest.raises(ModelNotReady, match="onnxruntime cannot load"):
            await house.registry.load_model("sum")
        house.remove(1)
        house.publish(1)
        await house.registry.load_model("sum")
        assert house.states == {1: "READY"}
