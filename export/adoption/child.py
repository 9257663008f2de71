"""The process in the sandbox: takes limits, wishes and a file from its input, and puts out what came of it."""

from __future__ import annotations

import json
import pickle
import resource
import signal
import sys
from typing import Any

from export.adoption.plan import AdoptionError, Wishes, one_line
from export.adoption.read import read
from export.adoption.sandbox import Limits

_OPEN_FILES = 64


def main() -> None:
    limits, wishes, data = pickle.load(sys.stdin.buffer)  # from our own parent
    confine(limits)
    out = sys.stdout.buffer

    def say(what: dict[str, Any]) -> None:
        out.write(json.dumps(what).encode() + b"\n")
        out.flush()

    def begin(phase: str) -> None:
        say({"phase": phase})
        if phase != "try":  # reading and the first run share one limit
            limit_processor(limits.doctor_seconds if phase == "doctor" else limits.try_seconds)

    try:
        adopted = _adopt(data, wishes, begin)
    except AdoptionError as error:
        say({"error": str(error)})
    else:
        say({"report": adopted.report})
        out.write(adopted.data)
        out.flush()


def confine(limits: Limits) -> None:
    """No more memory, no files larger than the answer, no core dump; the processor's time is limited phase by phase."""
    for what, most in (
        (resource.RLIMIT_AS, limits.address_bytes),
        (resource.RLIMIT_FSIZE, limits.written_bytes),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def limit_processor(seconds: float) -> None:
    """The signal ends the process, also inside onnxruntime."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _adopt(data: bytes, wishes: Wishes, begin: Any) -> Any:
    try:
        begin("read")
        proto = read(data)
        from export.adoption.adopt import adopt  # onnxruntime is loaded for what is worth running

        return adopt(proto, data, wishes, begin)
    except AdoptionError:
        raise
    except MemoryError as error:
        raise AdoptionError("it needs more memory than a model of its size should") from error
    except Exception as error:  # onnxruntime raises a class of its own for each cause, and hostile files raise any
        raise AdoptionError(f"it cannot be run: {type(error).__name__}: {one_line(error)}") from error


if __name__ == "__main__":
    main()
