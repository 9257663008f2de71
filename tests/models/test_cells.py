"""The equations of `cells` against torch's layers and our ChoGRU, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cells import ChoGRUCell, GRUCell, LSTMCell, RNNCell, sigma
from models.cho_gru import ChoGRU
from models.sequence_model import CELLS, ModelConfig, SequenceModel
from tests.gates import gru_gates, lstm_gates

CELL_CLASSES = {"rnn": RNNCell, "lstm": LSTMCell, "gru": GRUCell, "gru_cho": ChoGRUCell}
CLOSE = {"rtol": 0, "atol": 1e-12}


def make_model(cell, layers=1, seed=0):
    torch.manual_seed(seed)
    return SequenceModel(ModelConfig(cell, input_size=3, hidden_size=5, output_size=2, layers=layers)).double().eval()


def weights_of(model):
    return {name: parameter.detach().numpy() for name, parameter in model.recurrent.named_parameters()}


def torch_step(model, x, *states):
    with torch.no_grad():
        _, *states = model(torch.from_numpy(x)[:, None], *(torch.from_numpy(s)[None] for s in states))
    return [state[0].numpy() for state in states]


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_every_lstm_gate_is_that_of_nn_lstm(seed):
    model = make_model("lstm", seed=seed)
    x, h, c = draw(seed, 4, 3), np.tanh(draw(seed + 1, 4, 5)), draw(seed + 2, 4, 5)
    ours = LSTMCell.from_torch(weights_of(model))(x, h, c)._asdict()
    for gate, value in lstm_gates(torch_step, model, x, h, c).items():
        np.testing.assert_allclose(value, ours[gate], rtol=0, atol=1e-10, err_msg=gate)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
@pytest.mark.parametrize("cell", ["gru", "gru_cho"])
def test_every_gru_gate_is_that_of_the_layer(cell, seed):
    model = make_model(cell, seed=seed)
    x, h = draw(seed, 4, 3), np.tanh(draw(seed + 1, 4, 5)) + 0.01
    ours = CELL_CLASSES[cell].from_torch(weights_of(model))(x, h)._asdict()
    for gate, value in gru_gates(torch_step, model, x, h).items():
        np.testing.assert_allclose(value, ours[gate], rtol=0, atol=1e-9, err_msg=gate)


@pytest.mark.parametrize("cell", CELLS)
def test_two_stacked_layers_follow_the_equations_for_many_steps(cell):
    model = make_model(cell, layers=2)
    layers = [CELL_CLASSES[cell].from_torch(weights_of(model), suffix) for suffix in ("l0", "l1")]
    x = draw(1, 4, 40, 3)
    states = [[np.tanh(draw(2 + k, 4, 5)) for k in range(len(model.state_names))] for _ in layers]
    initial = [np.stack(parts) for parts in zip(*states, strict=True)]
    for t in range(x.shape[1]):
        below = x[:, t]
        for layer, cell_of_layer in enumerate(layers):
            states[layer] = list(cell_of_layer(below, *states[layer])[: len(states[layer])])
            below = states[layer][0]
    with torch.no_grad():
        y, *final = model(torch.from_numpy(x), *map(torch.from_numpy, initial))
        head = model.head(torch.from_numpy(below)).numpy()
    for got, expected in zip(final, zip(*states, strict=True), strict=True):
        np.testing.assert_allclose(got.numpy(), np.stack(expected), **CLOSE)
    np.testing.assert_allclose(y[:, -1].numpy(), head, **CLOSE)


def test_the_two_grus_differ_where_the_reset_gate_comes():
    """With r = 1 they are one cell, but for z and 1 - z; with r between, they are two."""
    model = make_model("gru")
    weights = weights_of(model)
    x, h = draw(1, 4, 3), np.tanh(draw(2, 4, 5))
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        weights[name] = weights[name].copy()
    mirrored = dict(weights)
    for name in mirrored:
        mirrored[name] = mirrored[name].copy()
        mirrored[name][5:10] *= -1
    after, before = GRUCell.from_torch(weights)(x, h), ChoGRUCell.from_torch(mirrored)(x, h)
    np.testing.assert_allclose(after.z, 1 - before.z, **CLOSE)
    assert np.abs(after.h - before.h).max() > 1e-3
    for copy in (weights, mirrored):
        copy["bias_ih_l0"][:5] += 50
    after, before = GRUCell.from_torch(weights)(x, h), ChoGRUCell.from_torch(mirrored)(x, h)
    np.testing.assert_allclose(after.h, before.h, **CLOSE)


def test_an_open_carousel_keeps_its_cell_state():
    weights = {name: np.zeros_like(w) for name, w in weights_of(make_model("lstm")).items()}
    weights["bias_ih_l0"] = np.repeat([-1e3, 1e3, 0.0, 0.0], 5)  # i shut, f open
    h, c = np.zeros((1, 5)), draw(3, 1, 5)
    step = LSTMCell.from_torch(weights)(np.ones((1, 3)), h, c)
    assert np.array_equal(step.c, c)


def test_a_cho_gru_without_bias_is_one_with_zero_bias():
    torch.manual_seed(0)
    without = ChoGRU(3, 5, bias=False)
    with_bias = ChoGRU(3, 5)
    with_bias.load_state_dict({**without.state_dict(), "bias_l0": torch.zeros(15)})
    x, h = torch.randn(2, 4, 3), torch.randn(1, 2, 5)
    for first, second in zip(without(x, h), with_bias(x, h), strict=True):
        assert torch.equal(first, second)
    weights = {name: parameter.detach().numpy() for name, parameter in without.named_parameters()}
    step = ChoGRUCell.from_torch(weights)(x[:, 0].numpy(), h[0].numpy())
    np.testing.assert_allclose(step.h, without(x[:, :1], h)[1][0].detach().numpy(), rtol=0, atol=1e-6)


def test_sigma_reaches_its_ends_without_overflow():
    assert sigma(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
