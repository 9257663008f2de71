"""Reads the gates out of a recurrent layer that shows only its states.

Other gates are held open or shut by their biases until the gate in question is all that is left of the new state.
`step(model, x, *states)` runs one time step, x (B, F) and states (B, H), and returns the new states; so the same probes
read torch and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch

from models.sequence_model import SequenceModel

Step = Callable[..., list[np.ndarray]]
WIDE = 50.0  # sigma(50) = tanh(50) = 1 in float32


def lstm_gates(step: Step, model: SequenceModel, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> dict[str, np.ndarray]:
    i, g = 0, 2  # of torch's order i f g o
    ones, zeros = np.ones_like(c), np.zeros_like(c)
    h_new, c_new = step(model, x, h, c)
    return {
        "h": h_new,
        "c": c_new,
        "f": step(model, x, h, ones)[1] - step(model, x, h, zeros)[1],
        "i": step(_shift(model, g, WIDE), x, h, zeros)[1],
        "C_tilde": step(_shift(model, i, WIDE), x, h, zeros)[1],
        "o": h_new / np.tanh(c_new),
    }


def gru_gates(step: Step, model: SequenceModel, x: np.ndarray, h: np.ndarray) -> dict[str, np.ndarray]:
    z = 1  # of torch's order r z n
    takes_new = WIDE if model.config.cell == "gru_cho" else -WIDE
    kept = step(_candidate(model, identity=False), x, h)[0] / h
    seen = step(_shift(_candidate(model, identity=True), z, takes_new), x, h)[0]
    return {
        "h": step(model, x, h)[0],
        "z": 1 - kept if model.config.cell == "gru_cho" else kept,
        "r": np.arctanh(seen) / h,
        "h_tilde": step(_shift(model, z, takes_new), x, h)[0],
    }


def _shift(model: SequenceModel, gate: int, by: float) -> SequenceModel:
    """A copy with one gate's bias moved."""
    copy, H = deepcopy(model), model.config.hidden_size
    name = "bias_l0" if model.config.cell == "gru_cho" else "bias_ih_l0"
    with torch.no_grad():
        getattr(copy.recurrent, name)[gate * H : (gate + 1) * H] += by
    return copy


def _candidate(model: SequenceModel, identity: bool) -> SequenceModel:
    """A copy whose candidate is 0, or tanh(r * h): the same for both forms, since U is the identity."""
    copy, H = deepcopy(model), model.config.hidden_size
    with torch.no_grad():
        for parameter in copy.recurrent.parameters():
            parameter[2 * H :] = 0
        if identity:
            copy.recurrent.weight_hh_l0[2 * H :] = torch.eye(H)
    return copy
