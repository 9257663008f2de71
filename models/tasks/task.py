"""What a task is: data, model, recipe, metric, and the published figures it stands beside.

Knows NumPy only, so that the same metric runs on the outputs of torch, of onnxruntime and of the running service.
Array legend: T steps, F features, O outputs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Sequence[Array]
Predict = Callable[[Arrays], Arrays]
"""Series in, outputs out: a list of (T, F) or (T,) arrays -> a list of (T, O) arrays."""

NO_CLASS = -100
"""The target of a step that has none, for classes and tokens; for numbers it is NaN."""


@dataclass(frozen=True)
class Split:
    """Series and what should come out at each step.

    inputs: (T, F) float32 or (T,) int64 each. targets: (T,) int64 or (T, O) float32 each, with `NO_CLASS` or NaN where
    a step has no target; a classification has its target at the last step only.
    """

    inputs: Arrays
    targets: Arrays

    def __post_init__(self) -> None:
        if [len(x) for x in self.inputs] != [len(y) for y in self.targets]:
            raise ValueError("inputs and targets must be the same number of series, of the same lengths")


@dataclass(frozen=True)
class Reference:
    """A figure that the metric stands beside; `source` says who measured it."""

    name: str
    value: float
    source: str


@dataclass(frozen=True)
class DataSource:
    name: str
    source: str
    licence: str


@dataclass(frozen=True)
class Recipe:
    """How a task is trained; chosen on the validation split."""

    max_epochs: int
    batch_size: int
    learning_rate: float
    """At its peak: it rises linearly over `warmup_steps` and falls as half a cosine to a hundredth."""
    warmup_steps: int = 50
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    patience: int = 10
    """Epochs without a better validation metric before training stops."""
    bptt_steps: int | None = None
    """Set: the training series are laid end to end, cut into `batch_size` streams, and trained in chunks of this many
    steps with the state carried from chunk to chunk (truncated back-propagation through time)."""
    input_noise: float = 0.0
    """Standard deviation of the noise added to inputs while training, in units of each feature's own deviation."""
    snapshot_steps: int = 200
    """How often all that `--resume` needs is written."""
    seed: int = 1


@dataclass(frozen=True)
class Task:
    """A named training job. `kind`, `input`, `output` and `data` go into the ONNX manifest as they are."""

    name: str
    kind: Literal["classification", "regression", "language-model"]
    description: str
    model: Mapping[str, Any]
    """Fields of `ModelConfig`."""
    recipe: Recipe
    loss: Literal["cross_entropy", "mae", "mse"]
    input: Mapping[str, Any]
    output: Mapping[str, Any]
    data: DataSource
    metric_name: str
    metric_unit: str
    better: Literal["higher", "lower"]
    metric: Callable[[Arrays, Arrays, Arrays], float]
    """(inputs, outputs, targets) -> the figure."""
    train_split: Callable[[int], Split]
    """Takes the epoch, since generated or randomly cut data differ from epoch to epoch."""
    valid_split: Callable[[], Split]
    test_split: Callable[[], Split]
    references: Callable[[], tuple[Reference, ...]] = field(default=tuple)
    """Some are recomputed on the same split, so they are asked for only when a report is written."""
    feedback: Sequence[Mapping[str, Any]] | None = None
    """Where each input feature comes from while the model feeds itself; into the manifest as it is."""
    normalise_inputs: bool = False
    scale_outputs: bool = False

    def evaluate(self, predict: Predict, split: Split | None = None) -> float:
        """The metric of `predict` on `split`, by default the test split."""
        split = split or self.test_split()
        return self.metric(split.inputs, predict(split.inputs), split.targets)

    def is_better(self, value: float, than: float | None) -> bool:
        """Of two that are equal the later one counts as better: it has trained longer. NaN is never better."""
        if than is None:
            return bool(np.isfinite(value))
        return value >= than if self.better == "higher" else value <= than
