"""`python -m export CHECKPOINT REPOSITORY`, or `python -m export adopt FILE.onnx ... REPOSITORY`."""

from __future__ import annotations

import sys


def main() -> None:
    if sys.argv[1:2] == ["adopt"]:  # a checkpoint of that name is ./adopt
        from export.adoption.command import app as adoption  # each is imported alone: adopting needs no torch

        adoption(sys.argv[2:], prog_name="python -m export adopt")
    else:
        from export.command import app

        app(prog_name="python -m export")


if __name__ == "__main__":
    main()
