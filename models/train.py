"""The training loop: one `Trainer` a run. It prints nothing; whoever watches gets a call after every update.

Knows no task by name. Gradients are clipped, the learning rate warms up and falls as a cosine, training stops early,
the weights of the best validation epoch are kept, and a killed run resumes bit for bit (see `snapshot`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models import snapshot
from models.batches import Batch, epoch_batches
from models.predict import predictor
from models.sequence_model import ModelConfig, SequenceModel
from models.tasks.task import NO_CLASS, Recipe, Split, Task

Watch = Callable[["Trainer", float], None]
"""Called after each update with the trainer and the batch's loss."""


def learning_rate(step: int, num_steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine from the peak to a hundredth of it. A pure function: nothing to resume."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, num_steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Trainer:
    """Trains one task; `folder` receives the snapshots."""

    def __init__(self, task: Task, folder: Path, resume: bool = False) -> None:
        self.task, self.folder, self.recipe = task, folder, task.recipe
        torch.manual_seed(self.recipe.seed)
        self.model = SequenceModel(ModelConfig(**task.model))
        self._set_scales(task.train_split(0))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=self.recipe.weight_decay)
        self.progress = snapshot.Progress()
        self.state: tuple[Tensor, ...] = ()
        self.best = _copy(self.model)
        self.batches_per_epoch = len(self._batches(0))
        if resume:
            self._restore()

    @property
    def num_steps(self) -> int:
        """Updates of the whole run, unless it stops early."""
        return self.recipe.max_epochs * self.batches_per_epoch

    def run(self, watch: Watch | None = None) -> SequenceModel:
        """Train to the end; returns the model with the weights of its best validation epoch."""
        progress = self.progress
        while not progress.finished:
            batches = self._batches(progress.epoch)
            for batch in batches[progress.batch :]:
                begin = time.perf_counter()
                loss = self._update(batch)
                progress.seconds += time.perf_counter() - begin
                if watch:
                    watch(self, loss)
                if progress.step % self.recipe.snapshot_steps == 0:
                    self.save()
            begin = time.perf_counter()
            self._end_epoch()
            progress.seconds += time.perf_counter() - begin
            self.save()
        self.model.load_state_dict(self.best)
        return self.model.eval()

    def save(self) -> None:
        """Write a snapshot that `resume=True` continues from."""
        snapshot.write(
            self.folder,
            self._identity(),
            self.progress,
            self.model.state_dict(),
            self.optimizer.state_dict(),
            self.state,
            self.best,
        )

    def _update(self, batch: Batch) -> float:
        self.model.train()
        rate = learning_rate(self.progress.step, self.num_steps, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not batch.continues:
            self.state = self.model.zero_state(batch.x.shape[0])
        y, *state = self.model.logits(self._add_noise(batch.x), *self.state, lengths=batch.lengths)
        # Truncated back-propagation: the state's value goes on, its gradient ends here.
        self.state = tuple(tensor.detach() for tensor in state)
        loss = self._loss(y, batch.target)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at update {self.progress.step + 1}: lower the learning rate"
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.progress.batch += 1
        self.progress.step += 1
        self.progress.loss_sum += loss.item()
        return loss.item()

    def _loss(self, y: Tensor, target: Tensor) -> Tensor:
        """Mean over the steps that have a target; numbers count in units of the targets' deviation."""
        if self.task.loss == "cross_entropy":
            return functional.cross_entropy(y.flatten(0, 1), target.flatten(), ignore_index=NO_CLASS)
        known = ~torch.isnan(target)
        difference = ((y - target) / self.model.output_std)[known]
        return difference.abs().mean() if self.task.loss == "mae" else difference.square().mean()

    def _add_noise(self, x: Tensor) -> Tensor:
        if self.recipe.input_noise == 0.0:
            return x
        return x + torch.randn_like(x) * self.recipe.input_noise * self.model.input_std

    def _end_epoch(self) -> None:
        progress = self.progress
        metric = self.task.evaluate(predictor(self.model), self.task.valid_split())
        progress.history.append(
            {
                "epoch": progress.epoch + 1,
                "train_loss": progress.loss_sum / progress.batch,
                "valid_metric": metric,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
            }
        )
        if self.task.is_better(metric, progress.best_metric):
            progress.best_metric, progress.best_epoch = metric, progress.epoch + 1
            self.best = _copy(self.model)
        progress.epoch += 1
        progress.batch, progress.loss_sum = 0, 0.0
        out_of_patience = progress.epoch - progress.best_epoch >= self.recipe.patience
        progress.finished = progress.epoch >= self.recipe.max_epochs or out_of_patience

    def _batches(self, epoch: int) -> list[Batch]:
        return epoch_batches(self.task.train_split(epoch), self.recipe, epoch)

    def _set_scales(self, train: Split) -> None:
        if self.task.normalise_inputs:
            self.model.set_input_normalisation(*_mean_and_std(np.concatenate(train.inputs)))
        if self.task.scale_outputs:
            self.model.set_output_scale(*_mean_and_std(np.concatenate(train.targets)))

    def _identity(self) -> dict[str, Any]:
        return {"task": self.task.name, "model": self.model.config.to_json(), "recipe": asdict(self.recipe)}

    def _restore(self) -> None:
        saved = snapshot.read(self.folder)
        if saved.identity != self._identity():
            raise ValueError(
                f"the snapshot in {self.folder} is of another task, model or recipe: {saved.identity}; "
                "resume with the same ones, or train afresh without --resume"
            )
        self.progress, self.state, self.best = saved.progress, saved.state, saved.best
        self.model.load_state_dict(saved.model)
        optimizer = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**optimizer, "state": saved.optimizer_slots})
        torch.set_rng_state(saved.random)


def _copy(model: SequenceModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _mean_and_std(values: np.ndarray) -> tuple[Tensor, Tensor]:
    """Of each column, NaN left out; (F,) float32 each. A constant column gets deviation 1."""
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    std = np.where(std > 0, std, 1.0)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))
