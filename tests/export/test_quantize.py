"""int8: what becomes of the file, what it says of itself, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

import export.command as command
from export import gain
from export.convert import ExportError, convert
from export.metadata import read_manifest
from export.quantize import LARGEST, describe, quantize
from export.session import Session
from export.verify import NOT_PROMISED, TaskMetric, verify
from models import checkpoint
from models.predict import predictor
from service.model_spec import parse_manifest
from service.repository import scan
from tests.export.make import INFO, KINDS, make_feed, make_model
from tests.export.test_main import TASK, save_vowels

LSTMS = {
    "lstm": KINDS["lstm"],
    "two-layers": KINDS["two-layers"],
    "tokens": KINDS["tokens"],
    "both": {"cell": "lstm", "bidirectional": True, "layers": 2},
}


def run(*arguments):
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def manifest_of(data):
    return read_manifest(onnx.load_from_string(data))


def figure(value, better="lower"):
    about = {"name": "mae", "value": value, "split": "test", "unit": "°F", "better": better}
    return TaskMetric("mae", value, lambda predict: 1.5, about)


@pytest.mark.parametrize("kind", LSTMS)
def test_every_lstm_becomes_int8_answers_alike_and_keeps_its_names(kind):
    model = make_model(**LSTMS[kind])
    before = convert(model, INFO, "model")
    after = quantize(before)
    nodes = [node.op_type for node in onnx.load_from_string(after).graph.node]
    assert nodes.count("DynamicQuantizeLSTM") == model.config.layers
    assert "LSTM" not in nodes
    assert verify(model, after).passed
    x, states = make_feed(model, 3, 9)
    for a, b in zip(Session(before).run(x, states), Session(after).run(x, states), strict=True):
        assert a.shape == b.shape
        assert 0 < np.abs((a - b) / (1 + np.abs(a))).max() < 0.05
    assert {k: v for k, v in manifest_of(after).items() if k != "batch_invariant"} == {
        k: v for k, v in manifest_of(before).items() if k != "batch_invariant"
    }
    assert not manifest_of(after)["batch_invariant"]


def test_weights_keep_seven_bits_each_gate_unit_at_its_own_scale():
    model = make_model(cell="lstm", layers=2)
    with torch.no_grad():
        model.recurrent.weight_hh_l0[7] *= 100
        model.recurrent.weight_hh_l0[8] = 0
    fp32, int8 = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer}
        for data in (convert(model, INFO, "model"), quantize(convert(model, INFO, "model")))
    )
    for name in ("W_l0", "R_l0", "W_l1", "R_l1"):
        assert int8[name].dtype == np.int8
        assert np.abs(int8[name]).max() == LARGEST
        scale = int8[f"{name}_scale"][:, :, None]
        error = np.abs(int8[name].transpose(0, 2, 1) * scale - fp32[name])
        assert (error <= scale / 2 * 1.0001).all()
    for name in ("head_weight", "head_bias", "B_l0"):
        assert np.array_equal(int8[name], fp32[name])


@pytest.mark.parametrize("cell", ["gru", "gru_cho", "rnn"])
def test_only_an_lstm_can_be_int8(cell):
    with pytest.raises(ExportError, match=rf"int8 is for LSTM models.*{cell}.*without --quantize"):
        quantize(convert(make_model(cell=cell), INFO, "model"))


def test_the_card_has_size_speed_and_figure_before_and_after():
    model = make_model(cell="lstm")
    before = convert(model, INFO, "model")
    after = quantize(before)
    answers = iter([4.0, 4.05])
    metric = replace(figure(4.0), evaluate=lambda predict: next(answers))
    measured = gain.measure(before, after, metric)
    data = describe(after, measured, gain.metrics(measured, metric))
    spec = parse_manifest(json.dumps(manifest_of(data)))
    told = spec.quantization
    assert (told.size_bytes.before, told.size_bytes.after) == (len(before), len(after))
    assert [step.rows for step in told.step_seconds] == [1, 32]
    assert all(0 < s.before < 1 and 0 < s.after < 1 for s in told.step_seconds)
    assert told.metric.model_dump() == {
        "name": "mae",
        "split": "test",
        "unit": "°F",
        "better": "lower",
        "before": 4.0,
        "after": 4.05,
    }
    assert [metric.value for metric in spec.metrics] == [4.05], "the card's figures are this file's"
    x, states = make_feed(model, 2, 5)
    for a, b in zip(Session(after).run(x, states), Session(data).run(x, states), strict=True):
        assert np.array_equal(a, b)


def test_the_table_says_where_nothing_is_gained():
    def step(before, after):
        return gain._speed({"rows": 1, "before": before, "after": after})

    assert step(3.0, 1.0) == "3.0 times faster"
    assert step(1.05, 1.0) == "no gain (1.05)"
    assert step(1.0, 2.0) == "no gain (0.50)"


def test_rows_and_steps_that_touch_are_told_and_do_not_fail():
    model = make_model(cell="lstm", hidden_size=64)
    report = verify(model, quantize(convert(model, INFO, "model")))
    touching = {check.name: check.worst for check in report.checks if check.limit == NOT_PROMISED}
    assert touching.keys() == {"whole == chunked", "whole == single steps", "batched == alone"}
    assert all(worst > 0 for worst in touching.values())
    assert report.passed


def test_a_quantized_file_with_gates_in_the_wrong_order_is_found():
    model = make_model(cell="lstm")
    proto = onnx.load_from_string(quantize(convert(model, INFO, "model")))
    (R,) = (tensor for tensor in proto.graph.initializer if tensor.name == "R_l0")
    swapped = np.roll(numpy_helper.to_array(R), model.config.hidden_size, axis=2)
    R.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(swapped), "R_l0"))
    report = verify(model, proto.SerializeToString())
    assert [check.name for check in report.checks if not check.passed] == ["torch ~ onnxruntime"]


@pytest.mark.parametrize(
    ("trained", "better", "allowed", "passes"),
    [
        (1.48, "lower", 0.02, True),
        (1.45, "lower", 0.02, False),
        (1.45, "lower", 0.05, True),
        (1.6, "lower", 0.0, True),
        (1.6, "higher", 0.02, False),
        (float("nan"), "lower", 0.02, False),
    ],
)
def test_a_figure_that_int8_makes_worse_is_refused(trained, better, allowed, passes):
    model = make_model(cell="lstm")
    data = quantize(convert(model, INFO, "model"))
    report = verify(model, data, figure(trained, better), max_metric_loss=allowed)
    assert report.passed is passes
    assert report.checks[-1].name == "test figure ~ trained"


def test_the_command_exports_int8_and_prints_what_it_brought(tmp_path):
    save_vowels(tmp_path / "run")
    result = run(tmp_path / "run", tmp_path / "repository", "--quantize", "int8", "--max-metric-loss", 1)
    assert result.exit_code == 0, result.output
    for text in ("times smaller", "a step of 32 rows", "accuracy (test)", "not promised", "3 of 3 checks passed"):
        assert text in result.output
    (file,) = scan(tmp_path / "repository")
    spec = parse_manifest(json.dumps(manifest_of(file.path.read_bytes())))
    assert (spec.batch_invariant, spec.max_batch_size, spec.max_chunk_size) == (False, None, None)
    assert spec.quantization.metric.before == pytest.approx(
        TASK.evaluate(predictor(checkpoint.load(tmp_path / "run")[0]))
    )


def test_one_row_at_a_time_is_one_step_at_a_time_in_int8_only(tmp_path):
    checkpoint.save(tmp_path / "run", make_model(cell="lstm"), INFO)
    options = ["--max-batch-size", 1]
    assert run(tmp_path / "run", tmp_path / "repository", *options).exit_code == 0
    assert run(tmp_path / "run", tmp_path / "repository", *options, "--quantize", "int8").exit_code == 0
    fp32, int8 = (manifest_of(file.path.read_bytes()) for file in scan(tmp_path / "repository"))
    assert (fp32["max_batch_size"], fp32.get("max_chunk_size")) == (1, None)
    assert (int8["max_batch_size"], int8["max_chunk_size"]) == (1, 1)


def test_a_refusal_writes_nothing_and_says_what_to_do(tmp_path):
    checkpoint.save(tmp_path / "run", make_model(cell="gru"), INFO)
    result = run(tmp_path / "run", tmp_path / "repository", "--quantize", "int8")
    assert result.exit_code == 1
    assert "without --quantize" in result.output
    assert not (tmp_path / "repository").exists()
