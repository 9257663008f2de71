"""A model as a function on lists of series: what a task's metric takes."""

from __future__ import annotations

import numpy as np
import torch

from models.sequence_model import SequenceModel
from models.tasks.task import Array, Arrays, Predict


def pad(series: Arrays, fill: float) -> torch.Tensor:
    """Stack series of unequal lengths: B of (T_i, ...) -> (B, max T_i, ...), `fill` behind the shorter ones."""
    first = series[0]
    padded = np.full((len(series), max(len(s) for s in series), *first.shape[1:]), fill, dtype=first.dtype)
    for row, values in zip(padded, series, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(padded)


def lengths_of(series: Arrays) -> torch.Tensor:
    """Steps of each series, (B,) int64."""
    return torch.tensor([len(s) for s in series])


def predictor(model: SequenceModel, max_batch: int = 64) -> Predict:
    """The model, in evaluation mode and from a zero state, as a `Predict`."""

    def predict(inputs: Arrays) -> list[Array]:
        model.eval()
        outputs: list[Array] = []
        with torch.no_grad():
            for begin in range(0, len(inputs), max_batch):
                series = inputs[begin : begin + max_batch]
                y = model(pad(series, 0), lengths=lengths_of(series))[0].numpy()
                outputs += [row[: len(s)] for row, s in zip(y, series, strict=True)]
        return outputs

    return predict
