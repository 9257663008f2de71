"""The graph against torch and against the equations."""

import numpy as np
import onnx
import pytest
import torch

from export.convert import convert
from export.graph import build_graph
from models.cells import ChoGRUCell, GRUCell, LSTMCell
from models.cho_gru import ChoGRU
from tests.export.make import BIDIRECTIONAL, INFO, KINDS, make_feed, make_model, make_session
from tests.gates import gru_gates, lstm_gates


def onnx_step(model, x, *states):
    _, *states = make_session(model).run(x[:, None], [state[None] for state in states])
    return [state[0] for state in states]


def weights_of(model):
    return {name: parameter.detach().numpy() for name, parameter in model.recurrent.named_parameters()}


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def recurrent_nodes(model):
    return [node for node in build_graph(model).node if node.op_type in ("RNN", "LSTM", "GRU")]


@pytest.mark.parametrize("kind", [*KINDS, *BIDIRECTIONAL])
def test_onnxruntime_answers_as_torch_does_at_every_length_and_batch(kind):
    model = make_model(**(KINDS | BIDIRECTIONAL)[kind])
    session = make_session(model)
    for B, T in [(1, 1), (1, 2), (2, 1), (3, 17), (32, 5), (1, 200)]:
        x, states = make_feed(model, B, T)
        with torch.no_grad():
            expected = model(torch.from_numpy(x), *map(torch.from_numpy, states))
        got = session.run(x, states)
        assert [value.shape for value in got] == [tuple(value.shape) for value in expected]
        for want, value in zip(expected, got, strict=True):
            np.testing.assert_allclose(value, want.numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_every_lstm_gate_in_onnx_follows_the_equations(seed):
    model = make_model(seed, scaled=False, cell="lstm")
    x, h, c = draw(1, 4, 3), np.tanh(draw(2, 4, 20)), draw(3, 4, 20)
    equations = LSTMCell.from_torch(weights_of(model))(x, h, c)._asdict()
    for gate, value in lstm_gates(onnx_step, model, x, h, c).items():
        np.testing.assert_allclose(value, equations[gate], rtol=0, atol=2e-6, err_msg=gate)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("cell", "equations_of"), [("gru", GRUCell), ("gru_cho", ChoGRUCell)])
def test_every_gru_gate_in_onnx_follows_the_equations(cell, equations_of, seed):
    model = make_model(seed, scaled=False, cell=cell)
    x = draw(1, 4, 3)
    h = np.copysign(np.random.default_rng(2).uniform(0.3, 0.9, (4, 20)), draw(3, 4, 20)).astype(np.float32)
    equations = equations_of.from_torch(weights_of(model))(x, h)._asdict()
    for gate, value in gru_gates(onnx_step, model, x, h).items():
        np.testing.assert_allclose(value, equations[gate], rtol=0, atol=5e-6, err_msg=gate)


def test_the_reset_gate_comes_before_the_product_for_cho_and_after_it_for_torch():
    def linear_before_reset(cell):
        (node,) = recurrent_nodes(make_model(cell=cell))
        return {a.name: a.i for a in node.attribute}.get("linear_before_reset", 0)

    assert (linear_before_reset("gru_cho"), linear_before_reset("gru")) == (0, 1)


def test_a_cho_gru_without_bias_exports():
    model = make_model(cell="gru_cho")
    torch.manual_seed(1)
    model.recurrent = ChoGRU(3, 20, bias=False)
    x, states = make_feed(model, 2, 5)
    with torch.no_grad():
        expected = model(torch.from_numpy(x), *map(torch.from_numpy, states))
    for want, value in zip(expected, make_session(model).run(x, states), strict=True):
        np.testing.assert_allclose(value, want.numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", [*KINDS, *BIDIRECTIONAL])
def test_one_recurrent_operator_a_layer_and_open_batch_and_time(kind):
    model = make_model(**(KINDS | BIDIRECTIONAL)[kind])
    assert len(recurrent_nodes(model)) == model.config.layers
    graph = onnx.load_from_string(convert(model, INFO, "model")).graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    rows = model.config.layers * model.config.num_directions
    assert shapes["x"][:2] == shapes["y"][:2] == ["batch", "time"]
    assert list(shapes) == ["x", *model.state_names, "y", *(f"{name}_next" for name in model.state_names)]
    for name in model.state_names:
        assert shapes[name] == shapes[f"{name}_next"] == [rows, "batch", 20]
