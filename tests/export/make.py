"""Small models and their files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from export.convert import convert
from export.session import Session
from models.sequence_model import CELLS, ModelConfig, SequenceModel

INFO: dict[str, Any] = {"task": "regression"}
KINDS = {
    **{cell: {"cell": cell} for cell in CELLS},
    "two-layers": {"cell": "lstm", "layers": 2},
    "two-layers-cho": {"cell": "gru_cho", "layers": 2},
    "three-layers-rnn": {"cell": "rnn", "layers": 3},
    "classes": {"cell": "gru", "head": "softmax", "output_size": 9},
    "tokens": {"cell": "lstm", "input_size": 31, "embedding_size": 5, "output_size": 31},
}
BIDIRECTIONAL = {f"both-{cell}": {"cell": cell, "bidirectional": True, "layers": 2} for cell in CELLS}


def make_model(seed: int = 0, scaled: bool = True, **fields: Any) -> SequenceModel:
    """Random weights; with `scaled`, normalised inputs and outputs in a unit, where the kind allows it."""
    torch.manual_seed(seed)
    config = ModelConfig(**{"input_size": 3, "hidden_size": 20, "output_size": 2, **fields})
    model = SequenceModel(config).eval()
    if scaled and config.embedding_size is None:
        model.set_input_normalisation([1.0, -20.0, 0.0], [2.0, 5.0, 1.0])
    if scaled and config.head == "linear":
        model.set_output_scale(torch.linspace(-1, 50, config.output_size), torch.linspace(1, 10, config.output_size))
    return model


def make_session(model: SequenceModel, threads: int = 1) -> Session:
    return Session(convert(model, INFO, "model"), threads)


def make_feed(model: SequenceModel, B: int, T: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """x and non-zero states."""
    random = np.random.default_rng(seed)
    states = [np.tanh(random.standard_normal(s.shape)).astype(np.float32) for s in model.zero_state(B)]
    if model.config.embedding_size is not None:
        return random.integers(model.config.input_size, size=(B, T)), states
    x = random.standard_normal((B, T, model.config.input_size)) * model.input_std.numpy() + model.input_mean.numpy()
    return x.astype(np.float32), states
