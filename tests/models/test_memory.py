"""The vanishing gradient, measured: against a Jacobian worked out by hand, and as numbers and a picture."""

import numpy as np
import pytest
import torch

from models import memory
from models.sequence_model import ModelConfig, SequenceModel


def test_norms_are_those_of_the_jacobian_worked_out_by_hand():
    """For h = tanh(w x + u h), dh_T/dx_t is w u^lag times the product of the tanh slopes from t to T."""
    model = SequenceModel(ModelConfig("rnn", input_size=2, hidden_size=1, output_size=1)).eval()
    w, u = torch.tensor([[0.3, -0.4]]), 0.9
    with torch.no_grad():
        for name, value in (("weight_ih_l0", w), ("weight_hh_l0", torch.tensor([[u]]))):
            model.recurrent.get_parameter(name).copy_(value)
        for name in ("bias_ih_l0", "bias_hh_l0"):
            model.recurrent.get_parameter(name).zero_()
    steps = 6
    norms = memory.gradient_norms(model, steps)

    x = memory.marked_at_each_lag(steps).numpy()
    h, slopes = np.zeros(len(x)), []
    for t in range(steps):
        h = np.tanh(x[:, t] @ w[0].numpy() + u * h)
        slopes.append(1 - h**2)
    for lag in range(steps):
        rows = slice(lag * memory.SERIES_PER_LAG, (lag + 1) * memory.SERIES_PER_LAG)
        by_hand = 0.5 * u**lag * np.prod([slope[rows] for slope in slopes[steps - 1 - lag :]], axis=0)
        assert norms[lag] == pytest.approx(np.exp(np.log(by_hand).mean()), rel=1e-4)


def test_each_lag_is_measured_at_a_marked_step():
    x = memory.marked_at_each_lag(10)
    lags = torch.arange(len(x)) // memory.SERIES_PER_LAG
    assert (x[torch.arange(len(x)), 9 - lags, 1] == 1.0).all()


def test_memory_without_trained_runs_measures_untrained_cells_and_draws_them(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "SERIES_PER_LAG", 1)
    curves = memory.measure(tmp_path)
    assert [curve.label for curve in curves] == ["RNN, untrained", "LSTM, untrained", "GRU, untrained"]
    assert all(curve.norms.shape == (100,) for curve in curves)
    rnn, lstm, gru = (curve.norms[60] for curve in curves)
    assert 1e-20 < rnn < 1e-2 * gru < 1e-6 * lstm
    memory.draw_chart(curves, tmp_path / "deep" / "memory.png")
    assert (tmp_path / "deep" / "memory.png").read_bytes().startswith(b"\x89PNG")
