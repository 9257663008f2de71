"""What a finished run leaves for people: metrics.json, learning_curve.png and MODEL_CARD.md."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from models.snapshot import Progress
from models.tasks.task import Reference, Task

METRICS, CURVE, CARD = "metrics.json", "learning_curve.png", "MODEL_CARD.md"


def manifest_info(task: Task, value: float, references: Sequence[Reference]) -> dict[str, Any]:
    """What the checkpoint carries for the ONNX manifest; the keys are described in `models.checkpoint`."""
    metric = {
        "name": task.metric_name,
        "value": value,
        "split": "test",
        "unit": task.metric_unit,
        "better": task.better,
        "references": [_plain(reference) for reference in references],
    }
    feedback = {} if task.feedback is None else {"feedback": [dict(source) for source in task.feedback]}
    return {
        "task_name": task.name,
        "task": task.kind,
        "description": task.description,
        "input": dict(task.input),
        "output": dict(task.output),
        **feedback,
        "metrics": [metric],
        "data": {"name": task.data.name, "source": task.data.source, "licence": task.data.licence},
    }


def write_report(folder: Path, task: Task, progress: Progress, value: float, references: Sequence[Reference]) -> None:
    """Write all three files; `value` is the metric on the test split."""
    document = {
        "task": task.name,
        "metric": task.metric_name,
        "unit": task.metric_unit,
        "better": task.better,
        "test": value,
        "valid": progress.best_metric,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "updates": progress.step,
        "seconds": round(progress.seconds, 1),
        "references": [_plain(reference) for reference in references],
        "history": progress.history,
    }
    (folder / METRICS).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(task, progress, value, references), encoding="utf-8")
    draw_curve(folder / CURVE, task, progress)


def model_card(task: Task, progress: Progress, value: float, references: Sequence[Reference]) -> str:
    """The card as Markdown."""
    rows = [
        f"| **this model**, {task.model['cell']} of {task.model['hidden_size']} | **{value:.4g}** | measured |",
        *(f"| {reference.name} | {reference.value:.4g} | {reference.source} |" for reference in references),
    ]
    return CARD_TEXT.format(
        task=task,
        recipe=task.recipe,
        progress=progress,
        metric=task.metric_name.replace("_", " ").capitalize(),
        table="\n".join(rows),
        model=json.dumps(dict(task.model)),
        machine=platform.machine(),
        torch=torch.__version__,
    )


CARD_TEXT = """\
# {task.name}

{task.description}

## Figures

{metric} on the test split, {task.better} is better.

| | {task.metric_unit} | source |
|---|---|---|
{table}

## Model

- input: {task.input[description]}
- output: {task.output[description]}
- configuration: `{model}`

## Training

The weights are those of epoch {progress.best_epoch} of {progress.epoch}, the best on the validation split:
{progress.best_metric:.4g} {task.metric_unit}.
{progress.step} updates in {progress.seconds:.0f} s on {machine}, torch {torch}.
Seed {recipe.seed}, batch {recipe.batch_size}, gradient norm at most {recipe.clip_norm:g},
learning rate {recipe.learning_rate:g} at its peak.
Repeat it with `python -m models train {task.name}`.

## Data

- {task.data.name}
- source: {task.data.source}
- licence: {task.data.licence}
"""


def draw_curve(path: Path, task: Task, progress: Progress) -> None:
    """Training loss and validation metric over the epochs."""
    epochs = [row["epoch"] for row in progress.history]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["train_loss"] for row in progress.history], color="#1f6f8b")
    left.set(title="training loss", xlabel="epoch", yscale="log")
    right.plot(epochs, [row["valid_metric"] for row in progress.history], color="#d1495b")
    right.axvline(progress.best_epoch, color="0.6", linestyle=":")
    right.annotate(" best", (progress.best_epoch, 0.94), xycoords=("data", "axes fraction"), color="0.4")
    right.set(title=f"{task.metric_name.replace('_', ' ')} on validation, {task.metric_unit}", xlabel="epoch")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
    figure.suptitle(task.name, fontweight="bold")
    figure.savefig(path, dpi=120)


def _plain(reference: Reference) -> dict[str, Any]:
    return {"name": reference.name, "value": reference.value, "source": reference.source}
