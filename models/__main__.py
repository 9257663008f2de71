"""The command line: `python -m models train TASK`, `tasks`, `memory`. Progress bars and tables live here."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from models import checkpoint, memory, tasks
from models.predict import predictor
from models.report import CARD, manifest_info, write_report
from models.tasks.task import Reference, Task
from models.train import Trainer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train Carousel's models.")
console = Console()


@app.command()
def train(
    name: Annotated[str, typer.Argument(metavar="TASK", help="one of `python -m models tasks`")],
    resume: Annotated[bool, typer.Option(help="continue a killed run where it stood")] = False,
    out: Annotated[Path | None, typer.Option(help="folder for the run  [default: runs/TASK]")] = None,
    epochs: Annotated[int | None, typer.Option(help="instead of the recipe's", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None,
    threads: Annotated[int, typer.Option(help="of the CPU; the result depends on it in the last bits", min=1)] = 1,
) -> None:
    """Train a task, measure it on its test split, and leave weights, metrics, curve and model card.

    `adding` trains its four cells one after the other, each in a folder of its own.
    """
    try:
        chosen = tasks.find(name)
    except KeyError as error:
        raise typer.BadParameter(str(error.args[0])) from error
    if out is not None and len(chosen) > 1:
        raise typer.BadParameter(f"--out is one folder, and {name} is {len(chosen)} tasks; name one of them")
    changes = {"max_epochs": epochs, "seed": seed}
    torch.set_num_threads(threads)
    for task in chosen:
        recipe = replace(task.recipe, **{key: value for key, value in changes.items() if value is not None})
        _train(replace(task, recipe=recipe), out or Path("runs") / task.name, resume)


def _train(task: Task, folder: Path, resume: bool) -> None:
    try:
        trainer = Trainer(task, folder, resume)
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    _make_folder(folder)
    with _progress_bar() as bar:
        line = bar.add_task(task.name, total=trainer.num_steps, completed=trainer.progress.step, facts="")

        def watch(trainer: Trainer, loss: float) -> None:
            bar.update(line, completed=trainer.progress.step, facts=_facts(trainer, loss))

        model = trainer.run(watch)
    value, references = task.evaluate(predictor(model)), task.references()
    info = manifest_info(task, value, references)
    commit = _source_commit()
    checkpoint.save(folder, model, info | ({"source_commit": commit} if commit else {}))
    write_report(folder, task, trainer.progress, value, references)
    console.print(_result_table(task, value, references))
    console.print(f"{trainer.progress.seconds:.0f} s of training; {folder}/ holds the checkpoint and {CARD}")


def _make_folder(folder: Path) -> None:
    """Now, and not when hours of training are to be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise typer.BadParameter(f"{folder} cannot be written to: {error.strerror}") from error


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[facts]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _facts(trainer: Trainer, loss: float) -> str:
    best = trainer.progress.best_metric
    metric = "" if best is None else f" · best {trainer.task.metric_name} {best:.4g}"
    return f"epoch {trainer.progress.epoch + 1} · loss {loss:.4f}{metric}"


def _result_table(task: Task, value: float, references: tuple[Reference, ...]) -> Table:
    table = Table(title=f"{task.name}: {task.metric_name} on the test split, {task.better} is better")
    for heading in ("", task.metric_unit, "source"):
        table.add_column(heading)
    table.add_row("[bold]this model", f"[bold]{value:.4g}", "measured now")
    for reference in references:
        table.add_row(reference.name, f"{reference.value:.4g}", reference.source)
    return table


def _source_commit() -> str | None:
    """The present commit, `-dirty` behind it when models/ differs from it; None outside a git checkout."""
    try:
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@app.command("tasks")
def list_tasks() -> None:
    """List the tasks."""
    table = Table(box=SIMPLE)
    for heading in ("task", "model"):
        table.add_column(heading, no_wrap=True)
    for heading in ("measured by", "data"):
        table.add_column(heading)
    for task in tasks.TASKS.values():
        metric = f"{task.metric_name.replace('_', ' ')}, {task.metric_unit}"
        table.add_row(task.name, f"{task.model['cell']} {task.model['hidden_size']}", metric, task.data.name)
    console.print(table)
    for family, members in tasks.FAMILIES.items():
        console.print(f"`train {family}` trains {', '.join(task.name for task in members)}")


@app.command("memory")
def show_memory(
    runs: Annotated[Path, typer.Option(help="where trained adding-rnn, adding-lstm, adding-gru are")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="where the picture goes")] = Path("runs/memory.png"),
) -> None:
    """Show the vanishing gradient: how much the last state still depends on an input `lag` steps back."""
    torch.set_num_threads(1)
    curves = memory.measure(runs)
    table = Table(title="norm of dh_T/dx_t on the adding problem")
    table.add_column("lag", justify="right")
    for curve in curves:
        table.add_column(curve.label, justify="right")
    for lag in memory.TABLE_LAGS:
        table.add_row(str(lag), *(_norm(curve.norms[lag]) for curve in curves))
    console.print(table)
    memory.draw_chart(curves, out)
    console.print(f"drawn: {out}")


def _norm(value: float) -> str:
    return f"{value:.1e}" if value > memory.LEAST else f"< {memory.LEAST:.0e}"


if __name__ == "__main__":
    app()
