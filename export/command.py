"""`python -m export CHECKPOINT REPOSITORY`: convert -> quantize if asked -> verify -> publish.

What fails to verify is not published.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from export import gain
from export.console import console, fail, say
from export.convert import ExportError, convert
from export.publish import PublishError, check_writable, publish
from export.quantize import describe
from export.quantize import quantize as quantize_int8
from export.verify import MAX_METRIC_LOSS, NOT_PROMISED, Report, TaskMetric, verify
from models import checkpoint
from models.sequence_model import SequenceModel

app = typer.Typer(add_completion=False)
R = TypeVar("R")


class Number(StrEnum):
    """What the weights of an exported model may become."""

    INT8 = "int8"


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="folder of a finished run, such as runs/vowels")],
    repository: Annotated[
        Path, typer.Argument(metavar="REPOSITORY", help="folder of the served models, such as model_repository")
    ],
    name: Annotated[str | None, typer.Option(help="the model's name; by default its task's")] = None,
    quantize: Annotated[Number | None, typer.Option(help="smaller numbers, for LSTMs; rows then share scales")] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(min=1, help="most rows the server may run together; 1 keeps int8 exact")
    ] = None,
    max_metric_loss: Annotated[
        float, typer.Option(min=0, help="how much worse int8 may make the test figure, relative to it")
    ] = MAX_METRIC_LOSS,
) -> None:
    """Turn a checkpoint into an ONNX file, prove it right, and publish it as the model's next version.

    `python -m export adopt` takes an ONNX file that was made elsewhere.

    With --quantize int8 the file is smaller and, from about H=256, faster; its figures before and after are in it.
    """
    try:
        model, info = checkpoint.load(folder)
        name = name or info.get("task_name") or folder.resolve().name
        check_writable(repository, name)
        data = _convert(model, info, name, max_batch_size)
        if quantize:
            data = _quantize(data, TaskMetric.of(info))
        _verify(model, data, TaskMetric.of(info), max_metric_loss)
        version, seconds = _timed(lambda: publish(repository, name, data))
        say("publish", str(version / "model.onnx"), seconds)
    except (checkpoint.CheckpointError, ExportError, PublishError) as error:
        fail(str(error))


def _convert(model: SequenceModel, info: dict[str, Any], name: str, max_batch_size: int | None) -> bytes:
    data, seconds = _timed(lambda: convert(model, info, name, max_batch_size=max_batch_size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say("convert", f"{name}: {model.config.cell}, {parameters:,} parameters, {len(data):,} bytes", seconds)
    return data


def _quantize(data: bytes, metric: TaskMetric | None) -> bytes:
    int8 = quantize_int8(data)
    quantization, seconds = _timed(lambda: gain.measure(data, int8, metric))
    say("quantize", quantization["method"], seconds)
    gain.show(quantization, console)
    return describe(int8, quantization, gain.metrics(quantization, metric))


def _verify(model: SequenceModel, data: bytes, metric: TaskMetric | None, max_metric_loss: float) -> None:
    report, seconds = _timed(lambda: verify(model, data, metric, max_metric_loss=max_metric_loss))
    say("verify", _verdict(report), seconds)
    report.show(console)
    if not report.passed:
        fail("nothing was published: the file does not answer as the checkpoint does, or not always alike")


def _verdict(report: Report) -> str:
    promised = [check for check in report.checks if check.limit != NOT_PROMISED]
    passed = sum(check.passed for check in promised)
    return f"{passed} of {len(promised)} checks passed"


def _timed(work: Callable[[], R]) -> tuple[R, float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin
