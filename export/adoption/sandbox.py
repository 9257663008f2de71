"""Examines an untrusted file in a child process that has limits on time and memory, and can write no files.

What the child says is text and bytes, never objects. A file that needs more than a second and what its size explains to
be read and run once is refused: so a hostile one is refused within two.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO

from export.adoption.plan import AdoptionError, Wishes
from export.metadata import Document

MAX_FILE_BYTES = 2**31 - 1
"""An ONNX file cannot be larger: more is kept in other files."""
_ADDRESS_BYTES = 3 * 2**30
_ADDRESS_PER_BYTE = 12
_TRY_SECONDS = 1.2
_BYTES_A_SECOND = 20e6
DOCTOR_SECONDS = 120.0
_WALL_FACTOR = 4
"""Processor seconds are what is bounded; where the machine is busy they take longer by the clock."""
_REPORT_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Limits:
    """What the child sets for itself before it looks at the file."""

    try_seconds: float
    doctor_seconds: float
    address_bytes: int
    written_bytes: int

    @classmethod
    def of(cls, size: int, doctor_seconds: float = DOCTOR_SECONDS) -> Limits:
        return cls(
            try_seconds=_TRY_SECONDS + size / _BYTES_A_SECOND,
            doctor_seconds=doctor_seconds,
            address_bytes=_ADDRESS_BYTES + _ADDRESS_PER_BYTE * size,
            written_bytes=2 * size + _REPORT_BYTES,
        )


def examine(data: bytes, wishes: Wishes, doctor_seconds: float = DOCTOR_SECONDS) -> tuple[bytes, Document]:
    """The file to publish and the report, see `adopt`. Raises AdoptionError, whatever happens to the child."""
    if len(data) > MAX_FILE_BYTES:
        raise AdoptionError(f"{len(data):,} bytes are more than an ONNX file can have, {MAX_FILE_BYTES:,}")
    limits = Limits.of(len(data), doctor_seconds)
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answered:
        write_question(asked, limits, wishes, data)
        code = _run(asked, answered, _WALL_FACTOR * (limits.try_seconds + limits.doctor_seconds))
        return read_answer(answered, code, limits)


def _run(asked: IO[bytes], answered: IO[bytes], wall_seconds: float) -> int:
    command = [sys.executable, "-m", "export.adoption.child"]
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = {**os.environ, "PYTHONPATH": paths}
    try:
        return subprocess.run(
            command, stdin=asked, stdout=answered, stderr=subprocess.DEVNULL, env=environment, timeout=wall_seconds
        ).returncode
    except subprocess.TimeoutExpired:
        return -signal.SIGPROF


def write_question(asked: IO[bytes], limits: Limits, wishes: Wishes, data: bytes) -> None:
    """What the child reads; nobody else does."""
    pickle.dump((limits, wishes, data), asked)
    asked.seek(0)


def read_answer(answered: IO[bytes], code: int, limits: Limits) -> tuple[bytes, Document]:
    """Lines of JSON: the phases that were begun, then what came of it; the model's bytes follow.

    `code` is how the child ended. Raises AdoptionError for all but a whole answer.
    """
    answered.seek(0)
    phase, last = "read", None
    while line := answered.readline(_REPORT_BYTES):
        try:
            last = json.loads(line)
        except ValueError as error:
            raise AdoptionError("the process that examined the file answered nonsense") from error
        if "phase" not in last:
            break
        phase = last["phase"]
    if last is None or "phase" in last:
        raise AdoptionError(_end(code, phase, limits))
    if "error" in last:
        raise AdoptionError(last["error"])
    if code:
        raise AdoptionError("what came of it is far larger than the file")
    return answered.read(), last["report"]


def _end(code: int, phase: str, limits: Limits) -> str:
    doing = {"read": "to be read", "try": "to be loaded and run once", "doctor": "to be examined"}[phase]
    if code == -signal.SIGPROF:
        seconds = limits.doctor_seconds if phase == "doctor" else limits.try_seconds
        advice = "; --seconds gives it longer" if phase == "doctor" else ""
        return f"it needs more than {seconds:.1f} s of processor time {doing}{advice}"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"the process that examined it died ({how}) while it was {doing}: the file is damaged, or made to do harm"
