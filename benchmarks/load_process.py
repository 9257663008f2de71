"""The load generator as the suite sees it: a plan in, an outcome out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

from benchmarks.machine import pinned
from benchmarks.plan import Outcome, Plan
from benchmarks.servers import ROOT


class LoadProcess:
    """A context manager around the process, which stays on its core."""

    def __init__(self, core: int) -> None:
        self._core = core

    def __enter__(self) -> LoadProcess:
        with pinned(self._core):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.load"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)  # closes its stdin, at which it ends

    def run(self, plan: Plan) -> Outcome:
        """Raises RuntimeError when the server let a connection drop or the generator died."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(asdict(plan)), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline() or '{"failed": "the load generator died"}')
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return Outcome(**answer)
