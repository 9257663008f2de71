"""python -m benchmarks: measure everything. Also: profile MODEL, cores, workers, states, forecast, render FILE..."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.sizes import FULL, QUICK

app = typer.Typer(add_completion=False, no_args_is_help=False)
console = Console(width=None if Console().is_terminal else 140)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    quick: Annotated[bool, typer.Option(help="A smoke run of half a minute; its figures mean little.")] = False,
    repeats: Annotated[int | None, typer.Option(min=1, help="Repeats of every row.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON there.")] = None,
) -> None:
    """Measure every row of the table in one run: tables, then one JSON line."""
    if context.invoked_subcommand is not None:
        return
    from benchmarks.report import show
    from benchmarks.suite import run_suite

    sizes = QUICK if quick else FULL
    sizes = replace(sizes, repeats=repeats or sizes.repeats)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that the servers are stopped
    with console.status("starting") as status:
        result = run_suite(sizes, status.update if console.is_terminal else _to_stderr)
    show(result, console)
    line = json.dumps(result)
    print(line)
    if out:
        out.write_text(line + "\n")
    if result["steps_wrong"]:
        raise typer.Exit(1)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@app.command("profile")
def profile_command(
    model: Annotated[str, typer.Argument(help="Path of a model.onnx, or a name in the repository.")],
    repository: Annotated[Path, typer.Option(help="Where names are looked up.")] = Path("model_repository"),
    picture: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("profile.png"),
) -> None:
    """How long runs of (rows, steps) take, and what the engine would choose."""
    from benchmarks.profile import find_model, profile

    profile(find_model(model, repository), picture, console)


@app.command("cores")
def cores_command(
    seconds: Annotated[float, typer.Option(help="For each cell of the tables.")] = 0.3,
    chunk: Annotated[int, typer.Option(help="Steps a run.")] = 1,
) -> None:
    """What a second core brings to LSTM and GRU."""
    from benchmarks.cores import compare_cores

    compare_cores(console, seconds, chunk)


@app.command("workers")
def workers_command(
    counts: Annotated[str, typer.Option(help="CAROUSEL_WORKERS, each in turn.")] = "1,2,4",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Of each run.")] = 1.0,
) -> None:
    """What processes that speak HTTP take off the one that has the models."""
    from benchmarks.workers import compare_workers

    print(json.dumps(compare_workers(console, [int(count) for count in counts.split(",")], repeats, seconds)))


@app.command("states")
def states_command(
    provider: Annotated[str, typer.Option(help="cpu or cuda; the GPU if there is one.")] = "",
    seconds: Annotated[float, typer.Option(help="For each cell of the tables.")] = 1.0,
    chunk: Annotated[int, typer.Option(help="Steps a run.")] = 1,
) -> None:
    """What it brings that states stay on the device."""
    from benchmarks.states import compare_states, provider_at_hand

    provider = provider or provider_at_hand()
    print(json.dumps({"provider": provider, "ticks": compare_states(console, provider, seconds, chunk)}))


@app.command("forecast")
def forecast_command(
    repository: Annotated[Path, typer.Option(help="Holds the model `weather`.")] = Path("model_repository"),
) -> None:
    """How far off the weather is that `generate` forecasts 72 hours ahead."""
    from benchmarks.forecast import measure, show

    result = measure(repository)
    show(result, console)
    print(json.dumps(result))


@app.command()
def render(files: Annotated[list[Path], typer.Argument(help="JSON results.")]) -> None:
    """Print the results of one or more runs as the markdown table of the README."""
    from benchmarks.report import markdown

    print(markdown([json.loads(path.read_text()) for path in files]))


if __name__ == "__main__":
    app()
