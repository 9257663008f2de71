"""Cell stack and head: `forward(x, *state) -> (y, *state)`.

Knows no task, no data and no ONNX. Array legend: B rows, T steps, F features, V vocabulary, H hidden, L layers,
D directions (1 or 2), O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.cho_gru import ChoGRU

CELLS = ("rnn", "lstm", "gru", "gru_cho")
HEADS = ("linear", "softmax")


@dataclass(frozen=True)
class ModelConfig:
    """What rebuilds a `SequenceModel`; every field is a JSON value."""

    cell: str
    """`rnn` (tanh), `lstm`, `gru` (reset after, as cuDNN has it) or `gru_cho` (reset before, Cho et al. 2014)."""
    input_size: int
    """F features; for token models the V of the vocabulary."""
    hidden_size: int
    output_size: int
    layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    """Between layers, while training."""
    embedding_size: int | None = None
    """Set: a token model, x is (B, T) int64."""
    head: str = "linear"
    """`linear`, or `softmax` for class or token probabilities."""

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}; got {self.cell!r}")
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}; got {self.head!r}")
        embedding_size = 1 if self.embedding_size is None else self.embedding_size
        sizes = (self.input_size, self.hidden_size, self.output_size, self.layers, embedding_size)
        if min(sizes) < 1:
            raise ValueError(f"every size must be at least 1; got {self}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1); got {self.dropout}")

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class SequenceModel(nn.Module):
    """Embedding or normalisation -> recurrent layers -> linear head, one output a step.

    x is (B, T, F) float32, or (B, T) int64 for token models; y is (B, T, O) float32. A state tensor is (L*D, B, H)
    float32, as in torch and ONNX; `state_names` says which there are. State left out means zeros.

    Ragged batches: give `lengths`, (B,) int64 with 1 <= length <= T. The state that comes back is then the one after
    each row's own last step, and in a bidirectional model the backward direction begins at that step; padding touches
    neither. y at padded steps is the head's answer to zeros and means nothing.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.state_names: tuple[str, ...] = ("h", "c") if config.cell == "lstm" else ("h",)
        self.embedding: nn.Embedding | None = None
        if config.embedding_size is not None:
            self.embedding = nn.Embedding(config.input_size, config.embedding_size)
        self.recurrent = _recurrent(config)
        self.head = nn.Linear(config.num_directions * config.hidden_size, config.output_size)
        self.input_mean: Tensor
        self.input_std: Tensor
        self.output_mean: Tensor
        self.output_std: Tensor
        self.register_buffer("input_mean", torch.zeros(config.input_size))
        self.register_buffer("input_std", torch.ones(config.input_size))
        self.register_buffer("output_mean", torch.zeros(config.output_size))
        self.register_buffer("output_std", torch.ones(config.output_size))

    def forward(self, x: Tensor, *state: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """Run T steps from `state`; returns (y, *state)."""
        y, *next_state = self.logits(x, *state, lengths=lengths)
        if self.config.head == "softmax":
            y = torch.softmax(y, dim=-1)
        return (y, *next_state)

    def logits(self, x: Tensor, *state: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """As `forward`, without the softmax: what cross entropy takes."""
        if state and len(state) != len(self.state_names):
            raise ValueError(f"state must be all of {self.state_names} or left out; got {len(state)} tensors")
        state = state or self.zero_state(x.shape[0])
        features, *next_state = self._recur(self._features(x), state, lengths)
        y = self.head(features) * self.output_std + self.output_mean
        return (y, *next_state)

    def zero_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """A fresh state: zeros, (L*D, B, H) each."""
        config = self.config
        shape = (config.layers * config.num_directions, batch_size, config.hidden_size)
        return tuple(self.head.weight.new_zeros(shape) for _ in self.state_names)

    def set_input_normalisation(self, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> None:
        """From now on the recurrent layers see (x - mean) / std; each is (F,). The export carries it along."""
        if self.embedding is not None:
            raise ValueError("a token model has no input to normalise")
        _set_scale(self.input_mean, self.input_std, mean, std)

    def set_output_scale(self, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> None:
        """From now on y = head * std + mean, so that a regression answers in real units; each is (O,)."""
        if self.config.head == "softmax":
            raise ValueError("probabilities have no unit to scale to")
        _set_scale(self.output_mean, self.output_std, mean, std)

    def _features(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            features: Tensor = self.embedding(x)
            return features
        return (x - self.input_mean) / self.input_std

    def _recur(self, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None) -> tuple[Tensor, ...]:
        """x (B, T, I) -> features (B, T, D*H) and the next state."""
        if isinstance(self.recurrent, ChoGRU):
            return tuple(self.recurrent(x, state[0], lengths))
        initial = state if len(state) > 1 else state[0]
        if lengths is None:
            features, final = self.recurrent(x, initial)
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            packed, final = self.recurrent(packed, initial)
            features, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
        return (features, *final) if isinstance(final, tuple) else (features, final)


def _recurrent(config: ModelConfig) -> nn.Module:
    kinds = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU, "gru_cho": ChoGRU}
    layer: nn.Module = kinds[config.cell](
        config.embedding_size or config.input_size,
        config.hidden_size,
        num_layers=config.layers,
        batch_first=True,
        bidirectional=config.bidirectional,
        dropout=config.dropout if config.layers > 1 else 0.0,  # nn.LSTM warns where there is no "between"
    )
    if config.cell == "lstm":
        _open_forget_gates(layer, config.hidden_size)
    return layer


def _open_forget_gates(lstm: nn.Module, hidden_size: int) -> None:
    """Forget bias 1: cells remember until they learn not to (Gers et al. 2000; Jozefowicz et al. 2015)."""
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            if name.startswith("bias_ih"):
                parameter[hidden_size : 2 * hidden_size].fill_(1.0)
            elif name.startswith("bias_hh"):
                parameter[hidden_size : 2 * hidden_size].fill_(0.0)


def _set_scale(
    mean_buffer: Tensor, std_buffer: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]
) -> None:
    new_mean, new_std = torch.as_tensor(mean), torch.as_tensor(std)
    if new_mean.shape != mean_buffer.shape or new_std.shape != std_buffer.shape:
        raise ValueError(
            f"mean and std must be {tuple(mean_buffer.shape)}; got {tuple(new_mean.shape)} and {tuple(new_std.shape)}"
        )
    if not (torch.isfinite(new_mean).all() and torch.isfinite(new_std).all() and (new_std > 0).all()):
        raise ValueError("mean must be finite, and std finite and above 0 (a constant feature: use 1)")
    mean_buffer.copy_(new_mean)
    std_buffer.copy_(new_std)
