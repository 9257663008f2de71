"""The recurrent cases of ONNX's own test suite: adopted and answered as they say, or refused with the reason.

Their weights are inputs and their sizes fixed: the weights are given as constants, and the axes are told.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx.backend.test.case import node as suite

from export.adoption.plan import AdoptionError
from tests.export.adoption.adopted import Served, adopt_as

MODULES = ("rnn", "gru", "lstm", "scan", "loop", "tensorscatter", "linear_attention", "causal_conv_with_state")
WEIGHTS = ("W", "R", "B", "P", "weight", "bias")
CELLS = ("simple_rnn", "gru", "lstm")
FORWARD = [
    *(f"{cell}_{what}" for cell in CELLS for what in ("defaults", "with_initial_bias")),
    "rnn_seq_length",
    "gru_seq_length",
    "lstm_with_peepholes",
]


@cache
def cases() -> dict[str, Any]:
    """By name. Each module adds its cases to the suite's list when it is imported first."""
    for module in MODULES:
        importlib.import_module(f"{suite.__name__}.{module}")
    return {case.name.removeprefix("test_"): case for case in suite._NodeTestCases}


class Case:
    def __init__(self, name: str) -> None:
        case = cases()[name]
        inputs, outputs = case.data_sets[0]
        graph = case.model.graph
        self.content = case.model.SerializeToString()
        self.inputs = {info.name: value for info, value in zip(graph.input, inputs, strict=True)}
        self.outputs = {info.name: value for info, value in zip(graph.output, outputs, strict=True)}

    def constants(self) -> dict[str, Any]:
        return {name: value for name, value in self.inputs.items() if name in WEIGHTS}


def rows_of(served: Served, x: Any, states: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """x (B, T, ...) step by step -> y (B, T, ...), and the last states by name as the server has them."""
    rows = len(x)
    now = [np.zeros(spec.batch_shape(rows), np.float32) for spec in served.spec.states]
    for spec, state in zip(served.spec.states, now, strict=True):
        state[:] = (states or {}).get(spec.name, 0)
    outputs = []
    for step in range(x.shape[1]):
        run = served.runner.run(x[:, step : step + 1], now)
        now = run.states
        outputs.append(run.outputs)
    return np.concatenate(outputs, axis=1), {s.name: v for s, v in zip(served.spec.states, now, strict=True)}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_cells_are_lifted_and_stream(tmp_path: Path, name: str):
    case = Case(name)
    x = case.inputs["X"]
    zeros = {name: value[:, :1] for name, value in case.inputs.items() if name.startswith("initial_")}
    constants = case.constants() | zeros
    adopted = adopt_as(case.content, constants=constants, shapes={"X": ("time", "batch", x.shape[2])}, lift=True)
    served = Served(tmp_path, adopted)
    assert served.spec.streaming
    y, states = rows_of(served, x.transpose(1, 0, 2))
    expected = case.outputs["Y_h"]
    np.testing.assert_allclose(states["h"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[:, -1], expected.transpose(1, 0, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_cells_that_read_backwards_are_served_whole(tmp_path: Path, cell: str, direction: str):
    case = Case(f"{cell}_{direction}")
    x = case.inputs["X"]
    options: dict[str, Any] = {"constants": case.constants(), "shapes": {"X": ("time", "batch", x.shape[2])}}
    with pytest.raises(AdoptionError, match=f"reads {direction}"):
        adopt_as(case.content, **options, lift=True)
    for name, expected in case.outputs.items():
        served = Served(tmp_path, adopt_as(case.content, **options, outputs=(name,)))
        assert not served.spec.streaming
        y = served.runner.run(np.ascontiguousarray(x.transpose(1, 0, 2)), []).outputs  # (B, T, D, H)
        wanted = expected.transpose(2, 0, 1, 3) if name == "Y" else expected.transpose(1, 0, 2)[:, None].repeat(3, 1)
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_the_layout_that_onnxruntime_lacks_is_refused(cell: str):
    case = Case(f"{cell}_batchwise")
    shape = ("batch", "time", case.inputs["X"].shape[2])
    with pytest.raises(AdoptionError, match=r"cannot load it.*[Bb]atchwise|layout"):
        adopt_as(case.content, constants=case.constants(), shapes={"X": shape})


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("scan9_sum", {"initial": "y"}),
        ("scan9_multi_state", {"initial_sum": "y_sum", "initial_prod": "y_prod"}),
        ("scan9_scalar", {"initial": "y"}),
    ],
)
def test_scans_stream(tmp_path: Path, name: str, states: dict[str, str]):
    case = Case(name)
    x = case.inputs["x"]
    axes: dict[str, Any] = {"batch_axes": dict.fromkeys((*states, "x")), "shapes": {"x": ("time", *x.shape[1:])}}
    outputs = ("z", *list(states.values())[1:])  # a state that shows nowhere would be suspicious
    served = Served(tmp_path, adopt_as(case.content, states=states, given=tuple(states), outputs=outputs, **axes))
    assert (served.spec.streaming, served.spec.max_batch_size) == (True, 1)
    given = {state: case.inputs[state] for state in states}
    steps = x.reshape(1, len(x), -1)
    y, last = rows_of(served, steps, given)
    z = case.outputs["z"]
    np.testing.assert_allclose(y[0, :, : steps.shape[2]].reshape(z.shape), z, rtol=1e-6)
    for state, output in states.items():
        np.testing.assert_allclose(last[state][0], case.outputs[output], rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["linear_attention_decode_step", "linear_attention_prefill_with_past", "linear_attention_no_past_explicit_zeros"],
)
def test_linear_attention_streams(tmp_path: Path, name: str):
    """Five inputs side by side, and a state that its names tell."""
    case = Case(name)
    data = [name for name in case.inputs if name != "past_state"]
    shapes: dict[str, Any] = {name: ("batch", "time", case.inputs[name].shape[2]) for name in data}
    shapes["past_state"] = ("batch", *case.inputs["past_state"].shape[1:])
    x = np.concatenate([case.inputs[name] for name in data], axis=2)
    served = Served(tmp_path, adopt_as(case.content, data=tuple(data), shapes=shapes, sample=x[0]))
    assert (served.spec.streaming, served.spec.max_batch_size, served.spec.max_chunk_size) == (True, None, None)
    y, last = rows_of(served, x, {"past_state": case.inputs["past_state"]})
    np.testing.assert_allclose(y, case.outputs["output"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last["past_state"], case.outputs["present_state"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["with_past_state", "with_bias_and_past_state", "silu_with_past_state", "decode_step"])
def test_causal_convolutions_stream(tmp_path: Path, what: str):
    """Time stands last."""
    case = Case(f"causal_conv_with_state_{what}")
    x, past = case.inputs["input"], case.inputs["past_state"]
    shapes: dict[str, Any] = {
        "input": ("batch", x.shape[1], "time"),
        "past_state": ("batch", *past.shape[1:]),
    }
    served = Served(tmp_path, adopt_as(case.content, constants=case.constants(), shapes=shapes))
    assert served.spec.streaming
    y, last = rows_of(served, np.ascontiguousarray(x.transpose(0, 2, 1)), {"past_state": past})
    np.testing.assert_allclose(y.transpose(0, 2, 1), case.outputs["output"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last["past_state"], case.outputs["present_state"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scan_sum", "what are initial"),
        ("loop11", "no input is left for the data|one int64 for the whole call"),
        ("loop13_seq", "'seq_empty' is no tensor"),
        ("loop16_seq_none", "'opt_seq' is no tensor"),
        ("tensorscatter", "all inputs or outputs would be states: past_cache"),
        ("tensorscatter_circular", "all inputs or outputs would be states"),
        ("tensorscatter_3d", "all inputs or outputs would be states"),
    ],
)
def test_what_is_no_stream_is_refused(name: str, words: str):
    case = Case(name)
    with pytest.raises(AdoptionError, match=words):
        adopt_as(case.content)


def test_no_recurrent_case_is_left_out():
    told = {name for name in cases() if name.split("_")[0] in ("simple", "rnn", "gru", "lstm", "scan", "scan9")}
    assert len(told) == 18 + 4
