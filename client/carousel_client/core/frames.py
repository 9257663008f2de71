"""The binary form of a stream, subprotocol `carousel.v1.binary`, as a client writes and reads it.

The server's service/protocol/frames.py documents it byte by byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from struct import Struct, error
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carousel_client.core.arrays import Array, Floats
from carousel_client.core.results import Document, ModelCard
from carousel_client.errors import InvalidInput, UnexpectedAnswer

BINARY = "carousel.v1.binary"
MAGIC = b"CRB1"
OPEN, STEP, DELETE = 1, 2, 3
OPENED, STEPPED, DELETED, ERROR = 129, 130, 131, 132
LAST, NONE, STATE, SCORE, START, REPLAYED = 1, 2, 4, 8, 16, 32
NO_STEP = 2**64 - 1
NO_HANDLE = 2**32 - 1
MAX_STEPS = 2**16 - 1
"""Of one record."""

_HEAD, _BLOCK = Struct("<4sI"), Struct("<BBHI")
_WHO: list[Any] = [("handle", "<u4"), ("tag", "<u4")]
_WHERE = [*_WHO, ("step", "<u8")]
_OPEN = np.dtype([*_WHO, ("id", "S128")])
_OPENED = np.dtype([*_WHERE, ("expires_at", "<f8")])
_DELETE = np.dtype(_WHO)
_ERROR = Struct("<IIII")


@dataclass(frozen=True, slots=True)
class Opening:
    handle: int
    tag: int
    id: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A record to be sent: `(T, ...)` inputs to run, or without any the end of the sequence."""

    handle: int
    tag: int
    step: int
    inputs: Array | None
    flags: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One record that came. `step` is None for a sequence that is not there; `outputs` `(T, ...)` of STEPPED only."""

    kind: int
    handle: int
    tag: int
    step: int | None = None
    outputs: Floats | None = None
    state: dict[str, Floats] | None = None
    replayed: bool = False
    problem: Document | None = None


class Frames:
    """Messages about one model."""

    def __init__(self, card: ModelCard) -> None:
        (self._input, *_), (self._output, *_) = card.inputs, card.outputs
        self._is_tokens = self._input.dtype == "int64"
        self._states = [(state.name, "<f4", state.step_shape) for state in card.states]
        self._state_bytes = np.dtype(self._states).itemsize if self._states else 0
        self._output_bytes = np.dtype(("<f4", self._output.step_shape)).itemsize

    def check(self, inputs: Array) -> Array:
        """As the stream carries them, `(T, ...)` float32 or int64. Raises InvalidInput."""
        wanted = self._input.step_shape
        if inputs.shape[1:] != wanted or not 0 < len(inputs) <= MAX_STEPS:
            expected, received = [f"1..{MAX_STEPS} steps", *wanted], list(inputs.shape)
            facts = {"place": "inputs", "expected": expected, "received": received}
            raise InvalidInput(f"inputs: expected shape {expected}, got {received}. Nothing was sent.", facts)
        if not self._is_tokens:
            return inputs.astype("<f4", copy=False)
        if inputs.dtype.kind == "f":
            facts = {"place": "inputs", "expected": "token ids", "received": str(inputs.dtype)}
            raise InvalidInput(f"inputs: expected token ids (integers), got {inputs.dtype}. Nothing was sent.", facts)
        return inputs.astype("<i8", copy=False)

    def size(self, asked_steps: int, flags: int) -> int:
        """About the bytes of a record of so many steps and of its answer together."""
        answered = 0 if flags & NONE else 1 if flags & LAST else asked_steps
        state = self._state_bytes if flags & STATE else 0
        return 64 + self._layout(asked_steps).itemsize + answered * self._output_bytes + state

    def write(self, opens: Sequence[Opening], rounds: Sequence[Sequence[Asked]]) -> bytes:
        """One message; no round has two records of one sequence, and rounds keep their order."""
        blocks = [self._open_block(opens)] if opens else []
        for asked in rounds:
            blocks += [self._block(*key, list(part)) for key, part in groupby(sorted(asked, key=_key), _key)]
        body = b"".join(blocks)
        return _HEAD.pack(MAGIC, _HEAD.size + len(body)) + body

    def read(self, message: bytes) -> Iterator[Answer]:
        """Raises UnexpectedAnswer."""
        try:
            if _HEAD.unpack_from(message) != (MAGIC, len(message)):
                raise ValueError("its head does not fit")
            at = _HEAD.size
            while at < len(message):
                kind, flags, steps, count = _BLOCK.unpack_from(message, at)
                answers, at = self._read_block(message, at + _BLOCK.size, kind, flags, steps, count)
                yield from answers
        except (ValueError, error) as reason:
            raise UnexpectedAnswer(f"A message of the stream cannot be read: {reason}") from reason

    def _open_block(self, opens: Sequence[Opening]) -> bytes:
        records = np.array([(one.handle, one.tag, one.id.encode()) for one in opens], _OPEN)
        return _BLOCK.pack(OPEN, 0, 0, len(records)) + records.tobytes()

    def _block(self, kind: int, flags: int, steps: int, asked: list[Asked]) -> bytes:
        records = np.empty(len(asked), self._layout(steps) if kind == STEP else _DELETE)
        records["handle"] = [one.handle for one in asked]
        records["tag"] = [one.tag for one in asked]
        if kind == STEP:
            records["step"] = [one.step for one in asked]
            records["inputs"] = np.stack([one.inputs for one in asked if one.inputs is not None])
        return _BLOCK.pack(kind, flags, steps, len(records)) + records.tobytes()

    def _layout(self, steps: int) -> np.dtype[np.void]:
        number = "<i8" if self._is_tokens else "<f4"
        return np.dtype([*_WHERE, ("inputs", number, (steps, *self._input.step_shape))])

    def _read_block(
        self, message: bytes, at: int, kind: int, flags: int, steps: int, count: int
    ) -> tuple[list[Answer], int]:
        if kind == ERROR:
            return _read_errors(message, at, count)
        if kind == STEPPED:
            states = self._states if flags & STATE else []
            layout = np.dtype([*_WHERE, ("outputs", "<f4", (steps, *self._output.step_shape)), *states])
        elif kind in (OPENED, DELETED):
            layout = _OPENED if kind == OPENED else _DELETE
        else:
            raise ValueError(f"there is no block of kind {kind}")
        records = np.frombuffer(message, layout, count, at)
        return [self._answer(kind, flags, record) for record in records], at + records.nbytes

    def _answer(self, kind: int, flags: int, record: Any) -> Answer:
        handle, tag = int(record["handle"]), int(record["tag"])
        if kind == DELETED:
            return Answer(kind, handle, tag)
        step = int(record["step"])
        if kind == OPENED:
            return Answer(kind, handle, tag, None if step == NO_STEP else step)
        state = {name: _own(record[name]) for name, *_ in self._states} if flags & STATE else None
        return Answer(kind, handle, tag, step, _own(record["outputs"]), state, bool(flags & REPLAYED))


def _read_errors(message: bytes, at: int, count: int) -> tuple[list[Answer], int]:
    heads = [_ERROR.unpack_from(message, at + _ERROR.size * n) for n in range(count)]
    at += _ERROR.size * count
    answers = []
    for handle, tag, status, length in heads:
        problem = {"status": status, **json.loads(message[at : at + length])}
        answers.append(Answer(ERROR, handle, tag, problem=problem))
        at += length
    return answers, at


def _key(asked: Asked) -> tuple[int, int, int]:
    """Kind, flags and T of the block that it goes into."""
    return (DELETE, 0, 0) if asked.inputs is None else (STEP, asked.flags, len(asked.inputs))


def _own(values: NDArray[Any]) -> Floats:
    """A copy: a view would keep the whole message, and could not be written to."""
    return np.array(values, np.float32)
