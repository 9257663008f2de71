import json

import pytest
import torch

from models import checkpoint
from models.sequence_model import CELLS, ModelConfig, SequenceModel

INFO = {"task": "regression", "input": {"unit": "°F"}, "metrics": [{"name": "mae", "value": 4.25}]}


def make_model(cell="lstm", seed=0):
    torch.manual_seed(seed)
    model = SequenceModel(ModelConfig(cell, input_size=3, hidden_size=6, output_size=2, layers=2, bidirectional=True))
    model.set_input_normalisation([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    model.set_output_scale([7.0, 8.0], [9.0, 10.0])
    return model.eval()


@pytest.mark.parametrize("cell", CELLS)
def test_what_was_saved_comes_back_bit_for_bit(tmp_path, cell):
    model = make_model(cell)
    checkpoint.save(tmp_path / "run", model, INFO)
    loaded, info = checkpoint.load(tmp_path / "run")
    assert (loaded.config, info) == (model.config, INFO)
    assert not loaded.training
    x = torch.randn(2, 5, 3)
    assert all(torch.equal(a, b) for a, b in zip(model(x), loaded(x), strict=True))


def test_the_folder_holds_safetensors_and_json_only(tmp_path):
    checkpoint.save(tmp_path, make_model(), INFO)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["info"] == INFO


def test_a_save_that_dies_leaves_the_last_one(tmp_path, monkeypatch):
    model = make_model()
    checkpoint.save(tmp_path, model, INFO)

    def half_written(tensors, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, make_model(seed=1), {})
    loaded, info = checkpoint.load(tmp_path)
    assert info == INFO
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_info_that_is_no_json_writes_nothing(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, make_model(), {"folder": tmp_path})
    assert not list(tmp_path.iterdir())


def damage_weights(folder):
    (folder / "weights.safetensors").write_bytes(b"not a tensor")


def damage_config(folder):
    (folder / "config.json").write_text("{")


def remove_weights(folder):
    (folder / "weights.safetensors").unlink()


def raise_format(folder):
    path = folder / "config.json"
    path.write_text(path.read_text("utf-8").replace('"format": 1', '"format": 2'), "utf-8")


def change_size(folder):
    path = folder / "config.json"
    path.write_text(path.read_text("utf-8").replace('"hidden_size": 6', '"hidden_size": 7'), "utf-8")


@pytest.mark.parametrize("damage", [damage_weights, damage_config, remove_weights, raise_format, change_size])
def test_a_damaged_checkpoint_says_where_it_lies(tmp_path, damage):
    checkpoint.save(tmp_path, make_model(), INFO)
    damage(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=str(tmp_path)):
        checkpoint.load(tmp_path)


def test_a_folder_that_is_not_there_is_no_checkpoint(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "nothing")
