"""How the command lines of the export speak: a line for each step with its time, and why there is no next one."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

console = Console(highlight=False)


def say(step: str, what: str, seconds: float) -> None:
    console.print(f"[bold]{step:8}[/] {escape(what)} [dim]({seconds:.2f} s)[/]", soft_wrap=True)


def fail(message: str) -> NoReturn:
    """To the error stream. Ends the command with 1."""
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(1)
