"""`python -m export CHECKPOINT REPOSITORY`."""

from __future__ import annotations

from export.command import app

if __name__ == "__main__":
    app(prog_name="python -m export")
