"""A published file learns what its task has come to declare; its graph and its figures stay."""

import json
from pathlib import Path

import numpy as np
import onnx

from export.metadata import METADATA_KEY, read_manifest
from export.redescribe import main
from export.session import Session
from models.tasks import TASKS

SHIPPED = Path(__file__).parents[2] / "model_repository" / "weather" / "1" / "model.onnx"


def write(path: Path, **changes: object) -> bytes:
    """The shipped weather model as it was before it could feed itself, `changes` in its manifest."""
    proto = onnx.load(SHIPPED)
    manifest = read_manifest(proto) | changes
    del manifest["feedback"]
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(manifest)})
    path.write_bytes(proto.SerializeToString())
    return path.read_bytes()


def test_the_shipped_forecaster_says_what_its_task_says():
    told = read_manifest(onnx.load(SHIPPED))["feedback"]
    assert told == [dict(source) for source in TASKS["weather"].feedback]


def test_only_the_manifest_changes(tmp_path):
    path = tmp_path / "model.onnx"
    before = write(path)
    assert main([str(path)]) == 0
    assert path.read_bytes() == SHIPPED.read_bytes()
    x = TASKS["weather"].test_split().inputs[0][None, :50]
    y = [Session(data).run(x, Session(data).zero_states(1))[0] for data in (before, path.read_bytes())]
    assert np.array_equal(*y)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_that_is_not_what_it_says_stays_as_it_is(tmp_path, capsys):
    metric = read_manifest(onnx.load(SHIPPED))["metrics"][0]
    for changes in ({"name": "kjv"}, {"metrics": [{**metric, "value": metric["value"] * 0.99}]}):
        path = tmp_path / "model.onnx"
        before = write(path, **changes)
        assert main([str(path)]) == 1
        assert path.read_bytes() == before
        assert str(path) in capsys.readouterr().err
