"""Cuts a split into training batches: shuffled ragged series, or parallel streams for truncated back-propagation.

The batches of an epoch follow from (seed, epoch) alone, so a resumed run finds its place by two counters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.predict import lengths_of, pad
from models.tasks.task import NO_CLASS, Array, Recipe, Split


@dataclass(frozen=True)
class Batch:
    """x is (B, T, F) or (B, T), target (B, T, O) or (B, T); lengths (B,), or None when no row is padded."""

    x: Tensor
    target: Tensor
    lengths: Tensor | None
    continues: bool
    """Each row goes on where the same row of the batch before it ended."""


def epoch_batches(split: Split, recipe: Recipe, epoch: int) -> list[Batch]:
    random = np.random.default_rng([recipe.seed, epoch])
    if recipe.bptt_steps is None:
        return _ragged(split, recipe.batch_size, random)
    return _streams(split, recipe.batch_size, recipe.bptt_steps, random)


def _ragged(split: Split, batch_size: int, random: np.random.Generator) -> list[Batch]:
    order = random.permutation(len(split.inputs))
    return [_pad_batch(split, order[begin : begin + batch_size]) for begin in range(0, len(order), batch_size)]


def _pad_batch(split: Split, rows: Array) -> Batch:
    inputs, targets = [split.inputs[row] for row in rows], [split.targets[row] for row in rows]
    no_target = float("nan") if targets[0].dtype.kind == "f" else NO_CLASS
    lengths = lengths_of(inputs)
    ragged = bool((lengths != lengths[0]).any())
    return Batch(pad(inputs, 0), pad(targets, no_target), lengths if ragged else None, continues=False)


def _streams(split: Split, batch_size: int, bptt_steps: int, random: np.random.Generator) -> list[Batch]:
    """Lay the series end to end and cut that into `batch_size` rows; a tail shorter than a row is left out.

    The whole is rotated by a random offset, so that every epoch cuts at other places.
    """
    x, target = np.concatenate(split.inputs), np.concatenate(split.targets)
    offset = int(random.integers(len(x)))
    x, target = np.roll(x, -offset, axis=0), np.roll(target, -offset, axis=0)
    steps = len(x) // batch_size
    rows_x = torch.from_numpy(x[: steps * batch_size].reshape(batch_size, steps, *x.shape[1:]))
    rows_target = torch.from_numpy(target[: steps * batch_size].reshape(batch_size, steps, *target.shape[1:]))
    return [
        Batch(rows_x[:, t : t + bptt_steps], rows_target[:, t : t + bptt_steps], None, continues=t > 0)
        for t in range(0, steps, bptt_steps)
    ]
