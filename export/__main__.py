"""`python -m export CHECKPOINT REPOSITORY`: convert -> verify -> publish. What fails to verify is not published."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from export.convert import ExportError, convert
from export.publish import PublishError, check_writable, publish
from export.verify import Report, TaskMetric, verify
from models import checkpoint
from models.sequence_model import SequenceModel

app = typer.Typer(add_completion=False)
console = Console(highlight=False)
R = TypeVar("R")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="folder of a finished run, such as runs/vowels")],
    repository: Annotated[
        Path, typer.Argument(metavar="REPOSITORY", help="folder of the served models, such as model_repository")
    ],
    name: Annotated[str | None, typer.Option(help="the model's name; by default its task's")] = None,
) -> None:
    """Turn a checkpoint into an ONNX file, prove it right, and publish it as the model's next version."""
    try:
        model, info = checkpoint.load(folder)
        name = name or info.get("task_name") or folder.resolve().name
        check_writable(repository, name)
        _export(model, info, repository, name)
    except (checkpoint.CheckpointError, ExportError, PublishError) as error:
        _fail(str(error))


def _export(model: SequenceModel, info: dict[str, Any], repository: Path, name: str) -> None:
    data, seconds = _timed(lambda: convert(model, info, name))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _say("convert", f"{name}: {model.config.cell}, {parameters:,} parameters, {len(data):,} bytes", seconds)
    report, seconds = _timed(lambda: verify(model, data, TaskMetric.of(info)))
    _say("verify", _verdict(report), seconds)
    report.show(console)
    if not report.passed:
        _fail("nothing was published: the file does not answer as the checkpoint does, or not always alike")
    version, seconds = _timed(lambda: publish(repository, name, data))
    _say("publish", str(version / "model.onnx"), seconds)


def _verdict(report: Report) -> str:
    passed = sum(check.passed for check in report.checks)
    return f"{passed} of {len(report.checks)} checks passed"


def _timed(work: Callable[[], R]) -> tuple[R, float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def _say(step: str, what: str, seconds: float) -> None:
    console.print(f"[bold]{step:8}[/] {escape(what)} [dim]({seconds:.2f} s)[/]", soft_wrap=True)


def _fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m export")
