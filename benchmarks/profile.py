"""t(B, T) of one model, and the batch and chunk that the engine would choose by it: a table and a picture."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.engine.cost_model import CostModel
from service.engine.model_runner import ModelRunner
from service.engine.ticker import BESIDE_STREAMS_SECONDS, INLINE_SECONDS
from service.settings import load_settings
from service.threads import open_runner

ROWS = (1, 4, 16, 32, 64, 128, 256)
STEPS = (1, 2, 4, 8, 16, 32, 64)
LONGEST_SECONDS = 0.2
REPEATS = 3

Times = dict[tuple[int, int], float]


def find_model(name: str, repository: Path) -> Path:
    """A path of a file, or the newest version of a model in the repository."""
    if Path(name).is_file():
        return Path(name)
    versions = sorted((repository / name).glob("*/model.onnx"), key=lambda path: int(path.parent.name))
    if not versions:
        raise SystemExit(f"{name!r} is neither a file nor a model in {repository}.")
    return versions[-1]


def measure_times(runner: ModelRunner) -> Times:
    """Seconds of a run of (rows, steps), best of a few; what would take too long is left out."""
    times: Times = {}
    for steps in STEPS:
        for rows in ROWS:
            times[rows, steps] = min(runner.measure(rows, steps) for _ in range(REPEATS))
            if times[rows, steps] > LONGEST_SECONDS:
                break
    return times


def profile(path: Path, picture: Path, console: Console) -> None:
    """Print the tables and write the picture."""
    settings = load_settings()
    runner = open_runner(path, settings)
    times = measure_times(runner)
    console.print(_times_table(runner.spec.name, runner.num_threads, times))
    cost_model = CostModel(settings.max_rows, settings.max_chunk)
    cost_model.calibrate(runner.measure)
    console.print(_choices_table(cost_model))
    draw(times, runner.spec.name, picture)
    console.print(f"Wrote {picture}")


def _times_table(name: str, num_threads: int, times: Times) -> Table:
    table = Table("T \\ B", *map(str, ROWS), title=f"{name}: us a run, (k steps/s); {num_threads} thread(s)")
    for steps in STEPS:
        cells = [
            f"{1e6 * times[rows, steps]:.0f} ({rows * steps / times[rows, steps] / 1000:.0f})"
            if (rows, steps) in times
            else ""
            for rows in ROWS
        ]
        table.add_row(str(steps), *cells)
    return table


def _choices_table(cost_model: CostModel) -> Table:
    """The engine's ladder: the most rows at each chunk length, alone and while streams are about."""
    alone, beside = cost_model.ladder(), cost_model.ladder(BESIDE_STREAMS_SECONDS)
    table = Table("Chunk", "Most rows", "Predicted us", "Where", "Most rows of offline work beside streams")
    table.title = "What the engine chooses"
    for steps, rows in alone.items():
        seconds = cost_model.predict(rows, steps)
        where = "event loop" if seconds < INLINE_SECONDS else "thread"
        table.add_row(str(steps), str(rows), f"{1e6 * seconds:.0f}", where, str(beside.get(steps, "none")))
    return table


def draw(times: Times, name: str, picture: Path) -> None:
    """Steps/s over rows, a line a chunk length."""
    import matplotlib  # here: the other commands do not wait for it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for steps in STEPS:
        points = [(rows, rows * steps / times[rows, steps]) for rows in ROWS if (rows, steps) in times]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=f"T={steps}")
    axes.set(xscale="log", yscale="log", xlabel="rows B", ylabel="steps a second", title=name)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
