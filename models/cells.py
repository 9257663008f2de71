"""The equations of the four cells, one class each, in the symbols of their papers.

Each is one time step in NumPy, for reading and for testing: nn.RNN, nn.LSTM, nn.GRU, our `ChoGRU` and the exported ONNX
files are held against these, gate by gate. Computed in the dtype of the weights, so tests can run them in float64.

Shapes: x (B, I), h and c (B, H), W (H, I), U (H, H), b (H,); * is the elementwise product. The papers write W[h, x] for
one product with h and x end to end; here that is W x + U h, the same sum with the matrix cut in two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sigma(a: Array) -> Array:
    """The logistic function 1 / (1 + e^-a), written so that no exponential overflows."""
    return 0.5 * (1 + np.tanh(0.5 * a))


@dataclass(frozen=True)
class Gate:
    """The affine part of one gate: W x + U h + b. Without bias, b is 0."""

    W: Array
    U: Array
    b: Array | float = 0.0

    def __call__(self, x: Array, h: Array) -> Array:
        a: Array = x @ self.W.T + h @ self.U.T + self.b
        return a


class RNNStep(NamedTuple):
    h: Array


@dataclass(frozen=True)
class RNNCell:
    """Elman 1990, "Finding structure in time", with tanh."""

    gate: Gate

    def __call__(self, x: Array, h: Array) -> RNNStep:
        return RNNStep(h=np.tanh(self.gate(x, h)))

    @classmethod
    def from_torch(cls, weights: Mapping[str, Array], suffix: str = "l0") -> RNNCell:
        """`weights` as nn.RNN names them; the two biases are one sum."""
        (gate,) = _gates(weights, suffix, 1)
        return cls(gate)


class LSTMStep(NamedTuple):
    h: Array
    c: Array
    f: Array
    i: Array
    C_tilde: Array
    o: Array


@dataclass(frozen=True)
class LSTMCell:
    """Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000.

    C, the cell state, is the constant error carousel: with f = 1 and i = 0 it goes round unchanged, and so does the
    error that flows back through it.
    """

    forget: Gate
    input: Gate
    candidate: Gate
    output: Gate

    def __call__(self, x: Array, h: Array, c: Array) -> LSTMStep:
        f = sigma(self.forget(x, h))
        i = sigma(self.input(x, h))
        C_tilde = np.tanh(self.candidate(x, h))
        C = f * c + i * C_tilde
        o = sigma(self.output(x, h))
        h = o * np.tanh(C)
        return LSTMStep(h, C, f, i, C_tilde, o)

    @classmethod
    def from_torch(cls, weights: Mapping[str, Array], suffix: str = "l0") -> LSTMCell:
        """`weights` as nn.LSTM names them, gate blocks in its order i, f, g, o; g is C~."""
        i, f, g, o = _gates(weights, suffix, 4)
        return cls(forget=f, input=i, candidate=g, output=o)


class GRUStep(NamedTuple):
    h: Array
    z: Array
    r: Array
    h_tilde: Array


@dataclass(frozen=True)
class ChoGRUCell:
    """Cho et al. 2014 (arXiv 1406.1078), reset before the product; z is the share of the *new* state.

    The 2014 paper itself prints h = z h_{t-1} + (1 - z) h~; the form here, with z and 1 - z exchanged, is the one of
    Chung et al. 2014 (arXiv 1412.3555).
    """

    update: Gate
    reset: Gate
    candidate: Gate

    def __call__(self, x: Array, h: Array) -> GRUStep:
        z = sigma(self.update(x, h))
        r = sigma(self.reset(x, h))
        h_tilde = np.tanh(self.candidate(x, r * h))
        h = (1 - z) * h + z * h_tilde
        return GRUStep(h, z, r, h_tilde)

    @classmethod
    def from_torch(cls, weights: Mapping[str, Array], suffix: str = "l0") -> ChoGRUCell:
        """`weights` as our `ChoGRU` names them, gate blocks in the order r, z, n; n is h~."""
        r, z, n = _gates(weights, suffix, 3)
        return cls(update=z, reset=r, candidate=n)


@dataclass(frozen=True)
class GRUCell:
    """The GRU of cuDNN and torch: reset after the product, so U h is one product for all gates.

    Its z is the share of the *old* state: 1 - z of `ChoGRUCell`. The candidate keeps two biases, since r multiplies
    the state's one.
    """

    update: Gate
    reset: Gate
    W: Array
    U: Array
    b_input: Array | float = 0.0
    b_state: Array | float = 0.0

    def __call__(self, x: Array, h: Array) -> GRUStep:
        z = sigma(self.update(x, h))
        r = sigma(self.reset(x, h))
        h_tilde = np.tanh(x @ self.W.T + self.b_input + r * (h @ self.U.T + self.b_state))
        h = (1 - z) * h_tilde + z * h
        return GRUStep(h, z, r, h_tilde)

    @classmethod
    def from_torch(cls, weights: Mapping[str, Array], suffix: str = "l0") -> GRUCell:
        """`weights` as nn.GRU names them, gate blocks in its order r, z, n; n is h~."""
        r, z, n = _gates(weights, suffix, 3)
        b_input, b_state = (weights.get(f"bias_{side}_{suffix}") for side in ("ih", "hh"))
        if b_input is None or b_state is None:
            return cls(z, r, n.W, n.U)
        return cls(z, r, n.W, n.U, np.split(b_input, 3)[2], np.split(b_state, 3)[2])


def _gates(weights: Mapping[str, Array], suffix: str, count: int) -> list[Gate]:
    """Cut torch's packed weights of one layer into its gates, biases summed."""
    W = np.split(weights[f"weight_ih_{suffix}"], count)
    U = np.split(weights[f"weight_hh_{suffix}"], count)
    biases = [weights[name] for name in _bias_names(suffix) if name in weights]
    if not biases:
        return [Gate(*parts) for parts in zip(W, U, strict=True)]
    b = np.split(np.sum(biases, axis=0), count)
    return [Gate(*parts) for parts in zip(W, U, b, strict=True)]


def _bias_names(suffix: str) -> tuple[str, ...]:
    return (f"bias_{suffix}", f"bias_ih_{suffix}", f"bias_hh_{suffix}")
