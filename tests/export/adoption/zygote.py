"""Children of the sandbox without waiting for Python's imports each time: a process that has them forks one a file.

The process is started afresh, so it has no threads when it forks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from export.adoption.plan import Wishes
from export.adoption.sandbox import Limits, read_answer, write_question

_PROGRAM = """
import os, sys
import export.adoption.adopt
from export.adoption.child import main

for line in sys.stdin:
    asked, answered = line.split()
    child = os.fork()
    if not child:
        os.dup2(os.open(asked, os.O_RDONLY), 0)
        os.dup2(os.open(answered, os.O_WRONLY), 1)
        sys.stdin, sys.stdout = open(0), open(1, "w")
        code = 1
        try:
            main()
            code = 0
        finally:
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, flush=True)
"""


class Zygote:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([sys.executable, "-c", _PROGRAM], text=True, env=environment, **pipes)
        self.seconds = 0.0
        """Of processor time that the last child took."""

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def examine(self, data: bytes, wishes: Wishes) -> Any:
        """As the sandbox's own."""
        limits = Limits.of(len(data))
        asked, answered = self._folder / "asked", self._folder / "answered"
        with asked.open("wb") as file:
            write_question(file, limits, wishes, data)
        answered.write_bytes(b"")
        to_child, from_child = self._process.stdin, self._process.stdout
        assert to_child
        assert from_child
        print(asked, answered, file=to_child, flush=True)
        code, seconds = from_child.readline().split()
        self.seconds = float(seconds)
        with answered.open("rb") as output:
            return read_answer(output, int(code), limits)
