"""A verification that cannot fail proves nothing: each check gets a file that breaks it."""

import io

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

from export.convert import convert
from export.verify import TaskMetric, verify
from tests.export.make import BIDIRECTIONAL, INFO, KINDS, make_model


def failed(report):
    return [check.name for check in report.checks if not check.passed]


def change(data, name, how):
    """The file with one of its constants changed."""
    proto = onnx.load_from_string(data)
    (constant,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
    constant.CopyFrom(numpy_helper.from_array(how(numpy_helper.to_array(constant).copy()), name))
    return proto.SerializeToString()


def add_to_y(data, *nodes):
    """The file with `nodes` between what was y, now `y_right`, and y."""
    proto = onnx.load_from_string(data)
    for node in proto.graph.node:
        node.output[:] = ["y_right" if name == "y" else name for name in node.output]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(1e-7), "tiny"))
    return proto.SerializeToString()


def leak(axis):
    """y plus a ten-millionth of its largest value along one axis."""
    return (
        helper.make_node("ReduceMax", ["y_right"], ["most"], axes=[axis], keepdims=1),
        helper.make_node("Mul", ["most", "tiny"], ["leak"]),
        helper.make_node("Add", ["y_right", "leak"], ["y"]),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_faithful_file_passes_every_check(kind):
    model = make_model(**KINDS[kind])
    report = verify(model, convert(model, INFO, "model"))
    assert report.passed
    assert [check.worst for check in report.checks if check.limit == 0] == [0.0] * 4


def test_a_bidirectional_file_passes_and_says_what_was_left_out():
    model = make_model(**BIDIRECTIONAL["both-lstm"])
    report = verify(model, convert(model, INFO, "model"))
    assert report.passed
    assert [check.name for check in report.checks] == ["torch == onnxruntime", "batched == alone", "reset == fresh"]
    assert any("whole sequences only" in line for line in report.left_out)


def test_one_wrong_weight_is_found():
    model = make_model(cell="lstm")

    def nudge(R):
        R[0, 3, 4] += 1e-2
        return R

    assert failed(verify(model, change(convert(model, INFO, "model"), "R_l0", nudge))) == ["torch == onnxruntime"]


def test_a_file_that_answers_nan_fails_everywhere():
    model = make_model(cell="lstm")
    data = change(convert(model, INFO, "model"), "head_bias", lambda bias: bias * np.nan)
    report = verify(model, data)
    assert len(failed(report)) == len(report.checks)


def test_a_nan_in_one_output_of_many_is_found():
    model = make_model(cell="lstm", output_size=9)
    spoilt = np.array([0, 0, 0, 0, 0, np.nan, 0, 0, 0], np.float32)
    data = change(convert(model, INFO, "model"), "head_bias", lambda bias: bias + spoilt)
    report = verify(model, data)
    assert len(failed(report)) == len(report.checks)


def test_rows_that_touch_each_other_in_the_last_bit_are_found():
    model = make_model(cell="lstm", scaled=False)
    report = verify(model, add_to_y(convert(model, INFO, "model"), *leak(axis=0)))
    assert failed(report) == ["batched == alone", "reset == fresh"]


def test_steps_that_touch_each_other_in_the_last_bit_are_found():
    model = make_model(cell="lstm", scaled=False)
    report = verify(model, add_to_y(convert(model, INFO, "model"), *leak(axis=1)))
    assert failed(report) == ["whole == chunked", "whole == single steps"]


def test_a_state_that_is_not_carried_is_found():
    model = make_model(cell="lstm")
    data = convert(model, INFO, "model")
    proto = onnx.load_from_string(data)
    for node in proto.graph.node:
        if node.op_type == "LSTM":
            node.output[2] = "c_lost"
    proto.graph.node.append(helper.make_node("Mul", ["c_lost", "c_lost"], ["c_next"]))
    found = failed(verify(model, proto.SerializeToString()))
    assert {"torch == onnxruntime", "whole == chunked", "whole == single steps"} <= set(found)


@pytest.mark.parametrize(("expected", "passes"), [(4.25, True), (4.2505, False), (float("nan"), False)])
def test_the_figure_must_be_the_checkpoints(expected, passes):
    model = make_model(cell="lstm")
    x = [np.ones((length, 3), np.float32) for length in (4, 2, 4)]

    def evaluate(predict):
        assert [y.shape for y in predict(x)] == [(4, 2), (2, 2), (4, 2)]
        return 4.25

    report = verify(model, convert(model, INFO, "model"), TaskMetric("mae", expected, evaluate))
    assert report.passed is passes
    assert failed(report) == ([] if passes else ["test figure == trained"])


def test_a_metric_is_found_by_the_tasks_name_and_split():
    figure = {"name": "accuracy", "value": 96.5, "split": "test"}
    assert TaskMetric.of({"task_name": "vowels", "metrics": [figure]}).expected == 96.5
    assert TaskMetric.of({"task_name": "vowels", "metrics": [figure | {"split": "valid"}]}) is None
    assert TaskMetric.of({"task_name": "unheard-of", "metrics": [figure]}) is None
    assert TaskMetric.of({"task": "regression"}) is None


def test_the_table_names_every_check_and_the_failed_ones():
    model = make_model(cell="lstm")
    text = io.StringIO()
    report = verify(model, change(convert(model, INFO, "model"), "head_bias", lambda bias: bias + 1))
    report.show(Console(file=text, width=80))
    rows = {check.name: line for check in report.checks for line in text.getvalue().splitlines() if check.name in line}
    assert {name for name, line in rows.items() if "FAILED" in line} == {"torch == onnxruntime"}
    assert len(rows) == 5
    assert "left out: the metric" in text.getvalue()
