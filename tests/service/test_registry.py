"""What is on disk and what is loaded: one broken model does not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.errors import ModelNotFound, ModelNotReady, SettingsInvalid, VersionNotFound
from service.metrics import Metrics
from service.registry import Registry
from service.repository import scan
from service.settings import Settings
from tests.service import onnx_models

pytestmark = pytest.mark.anyio


async def loaded(root: Path) -> Registry:
    registry = Registry(Settings(model_repository=root, max_rows=4, max_chunk=4), Metrics())
    await registry.load()
    return registry


async def test_the_newest_version_serves_and_any_can_be_asked_for(tmp_path: Path):
    for version in (1, 2, 10):
        onnx_models.running_sum(tmp_path, "sum", version)
    registry = await loaded(tmp_path)
    assert registry.get("sum").version == 10
    assert registry.get("sum", 2).version == 2
    with pytest.raises(VersionNotFound) as refused:
        registry.get("sum", 3)
    assert refused.value.fields["expected"] == [1, 2, 10]
    await registry.close(0)


async def test_a_broken_version_does_not_stop_the_others(tmp_path: Path):
    onnx_models.running_sum(tmp_path, "sum", 1)
    onnx_models.running_sum(tmp_path, "sum", 2).write_bytes(b"half a mod")
    onnx_models.running_sum(tmp_path, "broken", 1).write_bytes(b"")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    registry = await loaded(tmp_path)
    assert registry.ready
    assert registry.get("sum").version == 1, "the newest that is ready"
    for name, version in (("sum", 2), ("broken", None), ("empty", None)):
        with pytest.raises(ModelNotReady, match="could not be loaded"):
            registry.get(name, version)
    assert registry.names() == ["broken", "empty", "sum"]
    await registry.close(0)


async def test_a_model_that_breaks_its_manifest_is_refused_at_load(tmp_path: Path):
    def keep_two_steps(model: onnx.ModelProto) -> None:
        next(t for t in model.graph.initializer if t.name == "last_first").raw_data = (-2).to_bytes(
            8, "little", signed=True
        )

    assert "came out as" in await reason_for(edited(tmp_path, keep_two_steps))


async def test_a_model_that_loads_and_does_not_run_is_refused_at_load(tmp_path: Path):
    def look_up_the_length_in_a_table_of_two(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.float32), "table"))
        model.graph.node[0].output[0] = "sums_alone"
        model.graph.node.insert(1, onnx.helper.make_node("Shape", ["x"], ["length"], start=1, end=2))
        model.graph.node.insert(2, onnx.helper.make_node("Gather", ["table", "length"], ["nothing"]))
        model.graph.node.insert(3, onnx.helper.make_node("Add", ["sums_alone", "nothing"], ["sums"]))

    assert "does not run" in await reason_for(edited(tmp_path, look_up_the_length_in_a_table_of_two))


async def reason_for(root: Path) -> str:
    """Why `sum` is not served."""
    registry = await loaded(root)
    with pytest.raises(ModelNotReady):
        registry.get("sum")
    return registry.versions("sum")[1][0].reason


def edited(root: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    path = onnx_models.running_sum(root, "sum")
    model = onnx.load(path)
    edit(model)
    path.write_bytes(model.SerializeToString())
    return root


async def test_no_such_model(tmp_path: Path):
    registry = await loaded(tmp_path)
    with pytest.raises(ModelNotFound, match="GET /v1/models"):
        registry.get("nothing")
    await registry.close(0)


def test_only_what_fits_the_pattern_is_a_model(tmp_path: Path):
    for folder in ("a/1", "a/2", "a/.tmp-3", "a/0", "a/01", "a/notes", ".hidden/1", "b c/1", "a/latest"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "README.md").write_text("not a model")
    assert [(file.name, file.version) for file in scan(tmp_path)] == [("a", 1), ("a", 2)]


def test_a_repository_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(SettingsInvalid, match=r"CAROUSEL_MODEL_REPOSITORY=.*nowhere"):
        scan(tmp_path / "nowhere")
