"""The GRU of Cho et al. 2014 as a trainable stack; torch has only the reset-after form.

Parameters carry nn.GRU's names, shapes and gate order (r, z, n), but with one bias vector a layer: where the reset gate
comes before the product, a second bias would only add to the first. The equations: `cells.ChoGRUCell`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class ChoGRU(nn.Module):
    """L layers in one or two directions; `forward(x, h, lengths) -> (features, h)`.

    x is (B, T, I), h (L*D, B, H), lengths (B,) or None, features (B, T, D*H), zero at padded steps.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = True,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not batch_first:
            raise ValueError("ChoGRU takes (batch, time, features) only")
        self.hidden_size, self.num_layers, self.dropout = hidden_size, num_layers, dropout
        self.num_directions = 2 if bidirectional else 1
        bound = 1.0 / math.sqrt(hidden_size)  # nn.GRU's own start
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * self.num_directions
            for suffix in self.suffixes(layer):
                self._add(f"weight_ih_{suffix}", (3 * hidden_size, size), bound)
                self._add(f"weight_hh_{suffix}", (3 * hidden_size, hidden_size), bound)
                if bias:
                    self._add(f"bias_{suffix}", (3 * hidden_size,), bound)
                else:
                    self.register_parameter(f"bias_{suffix}", None)

    def suffixes(self, layer: int) -> tuple[str, ...]:
        """Ends of the parameter names of one layer, forward direction first."""
        return (f"l{layer}", f"l{layer}_reverse")[: self.num_directions]

    def forward(self, x: Tensor, h: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        T = x.shape[1]
        mask = None if lengths is None else torch.arange(T) < lengths.cpu()[:, None]
        mask = None if mask is None else mask.to(x.device)
        states = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = functional.dropout(x, self.dropout, self.training)
            outputs = []
            for direction, suffix in enumerate(self.suffixes(layer)):
                initial = h[layer * self.num_directions + direction]
                y, last = self._run(suffix, x, initial, mask, backward=direction == 1)
                outputs.append(y)
                states.append(last)
            x = torch.cat(outputs, dim=-1)
        return x, torch.stack(states)

    def _run(self, suffix: str, x: Tensor, h: Tensor, mask: Tensor | None, backward: bool) -> tuple[Tensor, Tensor]:
        """One layer in one direction; returns (B, T, H) and (B, H)."""
        H = self.hidden_size
        # The inputs' share of all gates is one product for all steps; only the state's share waits for the last step.
        from_input = functional.linear(x, getattr(self, f"weight_ih_{suffix}"), getattr(self, f"bias_{suffix}"))
        weight_hh = getattr(self, f"weight_hh_{suffix}")
        weight_rz, weight_n = weight_hh[: 2 * H].t(), weight_hh[2 * H :].t()
        steps = from_input.unbind(1)
        outputs: list[Tensor] = [h] * len(steps)
        for t in reversed(range(len(steps))) if backward else range(len(steps)):
            x_rz, x_n = steps[t][:, : 2 * H], steps[t][:, 2 * H :]
            r, z = torch.sigmoid(x_rz + h @ weight_rz).chunk(2, dim=-1)
            n = torch.tanh(x_n + (r * h) @ weight_n)
            new = (1 - z) * h + z * n
            # A padded step keeps the state, so backward rows begin at their own last step.
            h = new if mask is None else torch.where(mask[:, t, None], new, h)
            outputs[t] = h
        y = torch.stack(outputs, dim=1)
        return (y if mask is None else y.masked_fill(~mask[..., None], 0.0)), h

    def _add(self, name: str, shape: tuple[int, ...], bound: float) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
