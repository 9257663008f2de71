"""`python -m service` as people run it: a process of its own on a free port."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass
class Served:
    process: subprocess.Popen[str]
    banner: list[str]

    @property
    def address(self) -> str:
        return self.banner[0].split()[1]


def start(repository: Path, **settings: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CAROUSEL_")}
    env = {**kept, "CAROUSEL_MODEL_REPOSITORY": str(repository), "CAROUSEL_PORT": "0", **settings}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "service"], cwd=ROOT, env=env, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


@contextmanager
def serve(repository: Path, **settings: str) -> Iterator[Served]:
    with start(repository, **{"CAROUSEL_LOG_LEVEL": "error", **settings}) as process:
        assert process.stdout is not None
        try:
            yield Served(process, [process.stdout.readline().rstrip("\n") for _ in range(3)])
        finally:
            process.kill()
