"""What loads, what is refused, and that the refusal tells an operator what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from service.engine.model_runner import ModelRunner
from service.errors import ModelInvalid, ProviderUnavailable
from tests.service import onnx_models


def edited(path: Path, edit: Any) -> Path:
    """The file with its model and manifest changed by `edit(model, manifest)`."""
    model = onnx.load(path)
    manifest = json.loads(model.metadata_props[0].value)
    edit(model, manifest)
    return onnx_models.publish(path.parents[2], "edited", 1, model, manifest)


def test_a_good_file_tells_all_there_is_to_know(tmp_path: Path):
    runner = ModelRunner(onnx_models.lstm(tmp_path, features=3, hidden=8, outputs=2, layers=2))
    assert runner.provider == "CPUExecutionProvider"
    assert [state.row_shape for state in runner.spec.states] == [(2, 8), (2, 8)]
    assert runner.spec.input.step_shape == (3,)
    assert runner.spec.state_bytes == 2 * 2 * 8 * 4


def test_the_fingerprint_is_the_files(tmp_path: Path):
    one, same = onnx_models.lstm(tmp_path, "one", seed=1), onnx_models.lstm(tmp_path, "one", 2, seed=1)
    other = onnx_models.lstm(tmp_path, "one", 3, seed=2)
    assert ModelRunner(one).fingerprint == ModelRunner(same).fingerprint != ModelRunner(other).fingerprint


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda model, m: m.update(colour="red"), "colour"),
        (lambda model, m: m.update(format=2), "format"),
        (lambda model, m: m.pop("states"), "states"),
        (lambda model, m: m["states"][0].update(output="elsewhere"), "names output 'elsewhere'; the graph has"),
        (lambda model, m: m["states"].pop(), "needs input 'c', which the manifest does not name"),
        (lambda model, m: m["states"][0].update(shape=[1, "batch", 9]), "input 'h': the manifest says [1, 'batch', 9]"),
        (lambda model, m: m["inputs"][0].update(dtype="int64"), "the manifest says int64, the graph float32"),
        (lambda model, m: m["inputs"][0].update(shape=["time", "batch", 3]), "begins with batch, time"),
        (
            lambda model, m: model.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 7),
            "must be free",
        ),
        (lambda model, m: model.graph.node[0].__setattr__("op_type", "Teleport"), "onnxruntime cannot load the file"),
    ],
)
def test_a_file_that_would_be_served_wrongly_is_refused_with_the_reason(tmp_path: Path, edit: Any, reason: str):
    path = edited(onnx_models.lstm(tmp_path), edit)
    with pytest.raises(ModelInvalid) as refused:
        ModelRunner(path)
    assert reason in refused.value.message
    assert "\n" not in refused.value.message


def test_a_file_without_a_manifest_says_how_to_publish(tmp_path: Path):
    model = onnx.load(onnx_models.lstm(tmp_path))
    del model.metadata_props[:]
    with pytest.raises(ModelInvalid, match="python -m export"):
        ModelRunner(onnx_models.publish(tmp_path, "bare", 1, model, None))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08" * 1000])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelInvalid, match=r"cannot load|metadata"):
        ModelRunner(path)


def test_a_file_that_is_missing_is_refused(tmp_path: Path):
    with pytest.raises(ModelInvalid, match="cannot be read: No such file"):
        ModelRunner(tmp_path / "model.onnx")


def test_data_in_other_files_is_refused(tmp_path: Path):
    path = onnx_models.lstm(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(1024, np.float32).tobytes())

    def point_elsewhere(model: onnx.ModelProto, manifest: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "W0")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=str(secret))

    with pytest.raises(ModelInvalid):
        ModelRunner(edited(path, point_elsewhere))


def test_cuda_without_its_build_says_what_is_missing(tmp_path: Path):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has onnxruntime's CUDA build; tests/service/test_provider.py runs there")
    with pytest.raises(ProviderUnavailable, match="make install GPU=1"):
        ModelRunner(onnx_models.lstm(tmp_path), provider="cuda")


def test_a_fallback_to_the_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The CUDA build without a usable GPU prints a warning and runs on the CPU; that is not what was asked for."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with (
        pytest.warns(UserWarning, match="not in available provider"),
        pytest.raises(ProviderUnavailable, match="fell back"),
    ):
        ModelRunner(onnx_models.lstm(tmp_path), provider="cuda")


def test_one_thread_or_two_give_the_same_bits(tmp_path: Path):
    path, x = onnx_models.lstm(tmp_path, hidden=64), np.random.default_rng(0).normal(size=(9, 33, 3)).astype(np.float32)
    states = [np.zeros((1, 9, 64), np.float32)] * 2
    one, two = (ModelRunner(path, num_threads=n).run(x, states) for n in (1, 2))
    assert np.array_equal(one.outputs, two.outputs)


@pytest.mark.timeout(10)
def test_a_pipe_in_place_of_a_model_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(ModelInvalid, match="no regular file"):
        ModelRunner(tmp_path / "model.onnx")
