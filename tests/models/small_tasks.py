"""Two tasks that train in a second and together take every path of the loop.

`stream` repeats the token before: chunks with carried state. `ragged` sums its inputs: series of unequal lengths, two
layers with dropout, noise and scaling. Run as a program it trains one of them and kills itself in the middle.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from models.tasks.task import DataSource, Recipe, Split, Task
from models.train import Trainer


def stream(**recipe):
    return Task(
        name="stream",
        kind="language-model",
        model={"cell": "lstm", "input_size": 5, "hidden_size": 12, "output_size": 5, "embedding_size": 4},
        loss="cross_entropy",
        metric=_share_wrong,
        train_split=lambda epoch: _tokens(24, epoch),
        valid_split=lambda: _tokens(8, 100),
        test_split=lambda: _tokens(8, 101),
        **_common({"bptt_steps": 16} | recipe),
    )


def ragged(**recipe):
    return Task(
        name="ragged",
        kind="regression",
        model={"cell": "gru", "input_size": 2, "hidden_size": 12, "output_size": 1, "layers": 2, "dropout": 0.2},
        loss="mse",
        metric=_square_error,
        train_split=lambda epoch: _numbers(24, epoch),
        valid_split=lambda: _numbers(8, 100),
        test_split=lambda: _numbers(8, 101),
        normalise_inputs=True,
        scale_outputs=True,
        **_common({"input_noise": 0.1} | recipe),
    )


def _common(recipe):
    defaults = {"max_epochs": 4, "batch_size": 4, "learning_rate": 0.02, "warmup_steps": 3, "snapshot_steps": 4}
    return {
        "description": "A task for tests.",
        "recipe": Recipe(**(defaults | recipe)),
        "input": {"description": "in"},
        "output": {"description": "out"},
        "data": DataSource("generated", "tests", "none"),
        "metric_name": "error",
        "metric_unit": "parts",
        "better": "lower",
    }


def _tokens(count, seed):
    random = np.random.default_rng(seed)
    series = [random.integers(0, 5, size=random.integers(20, 60)) for _ in range(count)]
    return Split(series, [np.concatenate(([0], x[:-1])) for x in series])


def _numbers(count, seed):
    random = np.random.default_rng(seed)
    series = [random.normal(size=(random.integers(3, 9), 2)).astype(np.float32) for _ in range(count)]
    return Split(series, [x.cumsum(axis=0)[:, :1] for x in series])


def _share_wrong(inputs, outputs, targets):
    return float(np.mean([(y.argmax(-1) != target).mean() for y, target in zip(outputs, targets, strict=True)]))


def _square_error(inputs, outputs, targets):
    return float(np.mean([np.square(y - target).mean() for y, target in zip(outputs, targets, strict=True)]))


TASKS = {"stream": stream, "ragged": ragged}

if __name__ == "__main__":
    name, folder, fatal_step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)

    def kill_at_step(trainer, loss):
        if trainer.progress.step == fatal_step:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer(TASKS[name](), folder).run(kill_at_step)
