"""`python -m export adopt FILE.onnx --name NAME ... REPOSITORY`: examine in the sandbox, show, publish."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from export.adoption import options
from export.adoption.plan import AdoptionError, Wishes
from export.adoption.sandbox import DOCTOR_SECONDS, examine
from export.console import console, fail, say
from export.metadata import Document
from export.publish import PublishError, check_writable, publish

app = typer.Typer(add_completion=False)


class Kind(StrEnum):
    """What the numbers of an output are."""

    VALUE = "value"
    PROBABILITY = "probability"
    LOGIT = "logit"


def _many(help: str, metavar: str) -> object:
    return typer.Option(help=help, metavar=metavar)


@app.command()
def adopt(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="a recurrent model from anywhere")],
    repository: Annotated[Path, typer.Argument(metavar="REPOSITORY", help="folder of the served models")],
    name: Annotated[str, typer.Option(help="what the model is to be called")],
    state: Annotated[list[str] | None, _many("the output that gives an input's next value", "IN=OUT")] = None,
    data: Annotated[list[str] | None, _many("no state, whatever its name says", "TENSOR")] = None,
    constant: Annotated[list[str] | None, _many("the value of an input, or a file of it", "IN=VALUE|IN=@F.npy")] = None,
    context: Annotated[list[str] | None, _many("the last N values of each call go before the next", "IN:N")] = None,
    shape: Annotated[list[str] | None, _many("axes: batch, time, sizes", "IN=batch,time,40")] = None,
    batch_axis: Annotated[list[str] | None, _many("where an input has its rows", "IN=AXIS|IN=none")] = None,
    time_axis: Annotated[list[str] | None, _many("where an input has its steps", "IN=AXIS|IN=none")] = None,
    once: Annotated[list[str] | None, _many("given when a sequence begins, as an embedding is", "IN")] = None,
    given: Annotated[list[str] | None, _many("a state that does not begin from zeros: callers give it", "IN")] = None,
    length: Annotated[list[str] | None, _many("takes the number of steps", "IN")] = None,
    output: Annotated[list[str] | None, _many("put out only this; several are put side by side", "OUT")] = None,
    lift: Annotated[bool, typer.Option(help="carry the states that the graph resets at every call")] = False,
    max_batch_size: Annotated[int | None, typer.Option(min=1, help="most rows that may run together")] = None,
    sample: Annotated[Path | None, typer.Option(help="inputs to examine it with, (T, ...), .npy")] = None,
    expect: Annotated[Path | None, typer.Option(help="what its maker gets for the sample, .npy")] = None,
    task: Annotated[str, typer.Option(help="as in the model card")] = "",
    kind: Annotated[Kind, typer.Option(help="of the output")] = Kind.VALUE,
    description: Annotated[str, typer.Option(help="as in the model card")] = "",
    source: Annotated[str, typer.Option(help="where the model is from")] = "",
    licence: Annotated[str, typer.Option(help="of the model")] = "",
    seconds: Annotated[float, typer.Option(min=1, help="of processor time for the doctor")] = DOCTOR_SECONDS,
) -> None:
    """Take a recurrent ONNX model that was made elsewhere, find out how it may be served, and publish it.

    It is examined in a process of its own, with limits. What would stream wrong answers is not published.
    """
    about = {"name": name, "task": task, "kind": kind.value, "description": description}
    with _failures_told():
        if expect and not sample:
            raise AdoptionError("--expect needs the inputs too: --sample X.npy")
        check_writable(repository, name)
        wishes = Wishes(
            states=options.texts("--state", state),
            data=tuple(data or ()),
            constants=options.values("--constant", constant),
            contexts=options.counts("--context", context),
            shapes=options.shapes("--shape", shape),
            batch_axes=options.axes("--batch-axis", batch_axis),
            time_axes=options.axes("--time-axis", time_axis),
            once=tuple(once or ()),
            given=tuple(given or ()),
            lengths=tuple(length or ()),
            outputs=tuple(output or ()),
            lift=lift,
            max_batch_size=max_batch_size,
            sample=options.load(sample) if sample else None,
            expected=options.load(expect) if expect else None,
            about=about | {"source": source, "licence": licence, "file": file.name},
        )
        _examine_and_publish(file, repository, wishes, seconds)


@contextmanager
def _failures_told() -> Iterator[None]:
    try:
        yield
    except (AdoptionError, PublishError) as error:
        fail(f"{error}\nnothing was published")


def _examine_and_publish(file: Path, repository: Path, wishes: Wishes, seconds: float) -> None:
    """Raises AdoptionError, PublishError."""
    name, begin = wishes.about["name"], time.perf_counter()
    published, report = examine(options.read(file), wishes, seconds)
    _show(report)
    say("adopt", f"{name}: {report['served']}", time.perf_counter() - begin)
    version = publish(repository, name, published)
    say("publish", str(version / "model.onnx"), 0.0)


def _show(report: Document) -> None:
    """Names and numbers come from the file: none of them is markup."""
    tensors = Table("tensor", "is", "shape", "because")
    for name, part, shape, reason in report["tensors"]:
        tensors.add_row(*(escape(str(text)) for text in (name, part, ", ".join(map(str, shape)), reason)))
    console.print(tensors)
    findings = Table("check", "over", "difference", "")
    for finding in report["findings"]:
        worst = finding["worst"]
        difference = "" if worst is None else "0" if worst == 0 else f"{worst:.1e}"
        findings.add_row(
            *(escape(str(text)) for text in (finding["check"], finding["scope"], difference, finding["verdict"]))
        )
    console.print(findings)
