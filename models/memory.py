"""The vanishing gradient made visible: how much does the last state still depend on an input `lag` steps back?

Measured: the Frobenius norm of dh_T/dx_t, the Jacobian of the last hidden state in one step's input, for a tanh RNN,
an LSTM and a GRU of equal width on the adding problem, before training and after. The step at each lag is a marked
one, for a network that has learned the problem rightly ignores all others. Hochreiter (1991) and Bengio et al. (1994)
showed why the RNN's norm falls exponentially; the LSTM's cell and the GRU's update gate are paths where it need not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from torch import Tensor

from models import checkpoint
from models.sequence_model import ModelConfig, SequenceModel
from models.tasks import TASKS
from models.tasks.adding import NUM_STEPS, draw

TABLE_LAGS = (0, 1, 2, 5, 10, 20, 40, 60, 80, 99)
SERIES_PER_LAG = 4
CELLS = {"rnn": ("RNN", "#d1495b"), "lstm": ("LSTM", "#00798c"), "gru": ("GRU", "#edae49")}
FLOOR = 1e-12
"""Where the picture ends."""
LEAST = 1e-30
"""Below this the float32 arithmetic has run out and a norm is not printed."""
INK, PALE_INK = "#22262e", "#5b616b"
SUBTITLE = r"$\Vert\,\partial h_T/\partial x_t\,\Vert$ on the adding problem, 64 units. Solid: trained; dotted: not."


@dataclass(frozen=True)
class Curve:
    """norms[lag] for lags 0 to 99, geometric mean over the series."""

    cell: str
    trained: bool
    norms: NDArray[np.float64]

    @property
    def label(self) -> str:
        return f"{CELLS[self.cell][0]}, {'trained' if self.trained else 'untrained'}"


def measure(runs: Path) -> list[Curve]:
    """Untrained networks always; trained ones for those cells whose adding run is under `runs`."""
    curves = []
    for cell in CELLS:
        torch.manual_seed(1)
        task = TASKS[f"adding-{cell}"]
        curves.append(Curve(cell, False, gradient_norms(SequenceModel(ModelConfig(**task.model)))))
        if (runs / task.name / checkpoint.CONFIG).is_file():
            model, _ = checkpoint.load(runs / task.name)
            curves.append(Curve(cell, True, gradient_norms(model)))
    return curves


def gradient_norms(model: SequenceModel, num_steps: int = NUM_STEPS) -> NDArray[np.float64]:
    """||dh_T/dx_t|| for lag T-t = 0 .. num_steps-1, (num_steps,) float64. Exact: one backward pass a hidden unit."""
    x = marked_at_each_lag(num_steps).requires_grad_()
    h = model(x)[1][-1]  # (B, H): the last layer
    squares = torch.zeros(len(x), dtype=torch.float64)
    steps = torch.arange(len(x)) // SERIES_PER_LAG
    for unit in range(h.shape[1]):
        (gradient,) = torch.autograd.grad(h[:, unit].sum(), x, retain_graph=True)
        at_lag = gradient[torch.arange(len(x)), num_steps - 1 - steps]  # (B, F)
        squares += at_lag.double().square().sum(dim=1)
    norms = squares.sqrt().clamp_min(1e-45).log().reshape(num_steps, SERIES_PER_LAG).mean(dim=1).exp()
    result: NDArray[np.float64] = norms.numpy()
    return result


def marked_at_each_lag(num_steps: int) -> Tensor:
    """Adding series, (num_steps * SERIES_PER_LAG, num_steps, 2); row i is marked at lag i // SERIES_PER_LAG."""
    series = np.stack(draw(num_steps * SERIES_PER_LAG, [21]).inputs)[:, -num_steps:]
    lags = np.arange(len(series)) // SERIES_PER_LAG
    series[np.arange(len(series)), num_steps - 1 - lags, 1] = 1.0
    return torch.from_numpy(series)


def draw_chart(curves: list[Curve], path: Path) -> None:
    """The picture of the README: lag across, norm upward on a logarithmic scale."""
    figure = Figure(figsize=(9.6, 5.0), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.14))
    axes = figure.subplots()
    for curve in curves:
        _draw_curve(axes, curve)
    _label_ends(axes, [curve for curve in curves if curve.trained] or curves)
    axes.set(yscale="log", xlim=(0, NUM_STEPS - 1), ylim=(FLOOR, 10))
    axes.set_xlabel("lag: steps between the input and the last state", color=INK, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(PALE_INK)
    axes.grid(axis="y", color="#eceef1", linewidth=0.8)
    axes.tick_params(length=0, labelcolor=PALE_INK, labelsize=10.5)
    title = "What the last state still knows of an input"
    axes.set_title(title, loc="left", fontsize=15, fontweight="bold", color=INK, pad=28)
    axes.text(0, 1.035, SUBTITLE, transform=axes.transAxes, color=PALE_INK, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    visible = np.where(curve.norms > FLOOR, curve.norms, np.nan)
    (line,) = axes.plot(visible, color=CELLS[curve.cell][1], linewidth=2.6 if curve.trained else 1.4)
    if not curve.trained:
        line.set_linestyle((0, (1, 1.6)))


def _label_ends(axes: Axes, curves: list[Curve]) -> None:
    """Names beside the lines: no legend to look up. Lines that end side by side get theirs above and below."""
    ends = [(curve, int(np.flatnonzero(curve.norms > np.sqrt(FLOOR))[-1])) for curve in curves]
    ends.sort(key=lambda end: (end[1], end[0].norms[end[1]]))
    for rank, (curve, lag) in enumerate(ends):
        neighbours = [other for other, (_, end) in enumerate(ends) if end == lag]
        up = 16 * (neighbours.index(rank) - (len(neighbours) - 1) / 2)
        name, colour = CELLS[curve.cell]
        axes.annotate(
            name,
            (lag, curve.norms[lag]),
            xytext=(10, up),
            textcoords="offset points",
            color=colour,
            fontsize=12,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )
