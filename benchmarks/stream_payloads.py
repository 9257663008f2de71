"""Frames of `carousel.v1.binary` as the load generator sends and reads them: one block of one step a sequence."""

from __future__ import annotations

from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.protocol.frames import MAGIC, OPEN, OPENED, START, STEP, STEPPED

_HEAD = Struct("<4sIBBHI")
_WHO = [("handle", "<u4"), ("tag", "<u4")]


def open_message(names: list[str]) -> bytes:
    """Gives the sequences the handles 0, 1, 2, ..."""
    records = np.zeros(len(names), [*_WHO, ("id", "S128")])
    records["handle"], records["id"] = np.arange(len(names)), names
    return _message(OPEN, 0, 0, records)


class StepMessage:
    """The next step of each of `count` sequences."""

    def __init__(self, count: int, num_features: int) -> None:
        self._records = np.zeros(count, [*_WHO, ("step", "<u8"), ("inputs", "<f4", (num_features,))])
        self._records["handle"] = np.arange(count)

    def render(self, step: int, inputs: NDArray[np.float32]) -> bytes:
        """`inputs` is (count, F)."""
        self._records["step"], self._records["inputs"] = step, inputs
        return _message(STEP, START, 1, self._records)


def read_answers(message: bytes) -> tuple[list[int], NDArray[np.float32] | None]:
    """Handles, and the outputs of each, (N, O); None where they were opened. Raises ConnectionError for all else."""
    _, _, kind, _, steps, count = _HEAD.unpack_from(message)
    size, rest = divmod(len(message) - _HEAD.size, count)
    if kind not in (OPENED, STEPPED) or rest or steps != (kind == STEPPED):
        raise ConnectionError(f"the server answered {message[:400]!r}")
    num_outputs = (size - 16) // 4
    layout: list[Any] = [*_WHO, ("step", "<u8"), ("outputs", "<f4", (num_outputs,))]
    records = np.frombuffer(message, layout, count, _HEAD.size)
    return records["handle"].tolist(), records["outputs"] if kind == STEPPED else None


def text_template(sequence_id: str, stream: int) -> bytes:
    """For `template % (inputs, step)`."""
    return b'{"id":%d,"sequence_id":"%b","inputs":%%b,"step":%%d,"start":true}' % (stream, sequence_id.encode())


def _message(kind: int, flags: int, steps: int, records: NDArray[np.void]) -> bytes:
    return _HEAD.pack(MAGIC, _HEAD.size + records.nbytes, kind, flags, steps, len(records)) + records.tobytes()
