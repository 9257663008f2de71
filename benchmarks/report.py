"""Results for people: rich tables on the screen, a markdown table for the README."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Row, spread
from benchmarks.rows import empty_rows

_MARK = {True: "[green]yes", False: "[red]no", None: ""}
_WORD = {True: "yes", False: "no", None: ""}


def show(result: dict[str, Any], console: Console) -> None:
    """Everything that was measured, and what was void."""
    console.print(_facts([result]))
    console.print(_throughput_table(result["runs"]))
    table = Table("Row", "Median (range)", "Figure", "Reached", title="Figures to reach")
    for row in merged_rows([result]):
        table.add_row(row.title, _value(row), row.figure, _MARK[row.reached])
    console.print(table)
    console.print(f"Compared with the unbatched reference: {result['steps_compared']} steps, ", end="")
    console.print(f"{result['steps_wrong']} differ. Void runs: {len(result['voids'])}.")
    for void in result["voids"]:
        console.print(f"  [yellow]void[/] {void}")


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """The table of the README, from the values of all these results together."""
    lines = [_facts(results), "", "| | median (range) | figure | reached |", "|---|---|---|---|"]
    lines += [f"| {row.title} | {_value(row)} | {row.figure} | {_WORD[row.reached]} |" for row in merged_rows(results)]
    lines += ["", "| server, model, streams | steps/s | server CPU a step, us | p50 / p99 ms | load generator |"]
    lines += ["|---|---|---|---|---|"]
    runs = [run for result in results for run in result["runs"]]
    lines += [f"| {' | '.join(cells)} |" for cells in _throughput(runs)]
    compared, wrong = (sum(result[key] for result in results) for key in ("steps_compared", "steps_wrong"))
    voids = sum(len(result["voids"]) for result in results)
    return "\n".join([*lines, "", f"Steps compared bit for bit: {compared}, different: {wrong}. Void runs: {voids}.\n"])


def merged_rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows of the table as it is now, with the values of all results."""
    rows = empty_rows()
    for result in results:
        for row in result["rows"]:
            if row["key"] in rows:
                rows[row["key"]].values += row["values"]
    return list(rows.values())


def _value(row: Row) -> str:
    return f"{spread(row.values)} {row.unit}".rstrip() if row.values else "void"


def _facts(results: Sequence[dict[str, Any]]) -> str:
    machine, conditions = results[0]["machine"], results[0]["conditions"]
    loads = [result["conditions"]["load_average_before"] for result in results]
    versions = ", ".join(f"{name} {machine[name]}" for name in machine if name not in ("cpu", "cpus", "memory_gb"))
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gb']} GB; {versions}. "
        f"Server on core {conditions['server_core']}, load on core {conditions['load_core']}, "
        f"{conditions['intra_op_threads']} intra-op thread; {len(results)} run(s) of {conditions['repeats']} repeats, "
        f"{conditions['seconds']:.0f} s each; load average before {', '.join(map(str, loads))}."
    )


def _throughput_table(runs: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Closed loop, one step a request")
    for name in ("Server, model, streams", "Steps/s", "Server CPU a step, us", "p50 / p99 ms", "Load generator"):
        table.add_column(name)
    for cells in _throughput(runs):
        table.add_row(*cells)
    return table


def _contender(run: dict[str, Any]) -> str:
    """The server, and how it was spoken to where that is not one step a call in JSON."""
    door, num_steps = run.get("door", "http"), run.get("steps_a_call", 1)
    how = ([] if door == "http" else [door]) + ([] if num_steps == 1 else [f"{num_steps} steps a call"])
    return f"{run['server']} ({', '.join(how)})" if how else str(run["server"])


def _throughput(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        if "streams" in run and "rate" not in run and not run["void"]:
            groups[run["model"], _contender(run), run["streams"]].append(run)
    return [
        [
            f"{server}, {model}, {streams}",
            spread([run["steps_per_second"] for run in group]),
            spread([run["server_cpu_us"] for run in group]),
            " / ".join(spread([run["latency"][point] for run in group]) for point in ("p50_ms", "p99_ms")),
            f"{max(run['load_share'] for run in group):.0%}",
        ]
        for (model, server, streams), group in sorted(groups.items())
    ]
