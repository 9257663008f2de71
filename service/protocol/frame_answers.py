"""Answers on a binary stream, written as `frames.py` describes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.model_spec import ModelSpec
from service.protocol.frames import (
    BLOCK,
    DELETED,
    ERROR,
    EXPIRES,
    HEAD,
    MAGIC,
    NUM_KEPT_LAYOUTS,
    OPENED,
    REPLAYED,
    STATE,
    STEPPED,
    WHERE,
    WHO,
)

Floats = NDArray[np.float32]

_FIXED = {OPENED: np.dtype([*WHERE, ("expires_at", "<f8")]), DELETED: np.dtype(WHO)}
_ERROR = np.dtype([*WHO, ("status", "<u4"), ("length", "<u4")])


@dataclass(slots=True)
class Stepped:
    """The answer to one record of STEP."""

    handle: int
    tag: int
    step: int
    outputs: Floats
    """(T, ...)"""
    state: tuple[Floats, ...] | None
    replayed: bool
    expires_at: float | None = None
    """None where it was not asked for."""


@dataclass(slots=True)
class ManyStepped:
    """The answers to many records of STEP, one of each handle."""

    handles: NDArray[np.uint32]
    tags: NDArray[np.uint32]
    """(N,)"""
    steps: list[int]
    outputs: Floats
    """(N, T, ...)"""
    expires_at: list[float] | None = None
    """None where they were not asked for."""


@dataclass(slots=True)
class Opened:
    handle: int
    tag: int
    step: int
    expires_at: float


@dataclass(slots=True)
class Deleted:
    handle: int
    tag: int


@dataclass(slots=True)
class Failed:
    """`document` is the problem, JSON."""

    handle: int
    tag: int
    status: int
    document: bytes


Single = Stepped | Opened | Deleted | Failed
Answer = Single | ManyStepped

_Key = tuple[int, int, int]
"""Kind, flags and T of the block that an answer belongs to."""


class FrameWriter:
    """Writes messages about one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self._output_shape = spec.output.step_shape
        self._states = [(f"state {n}", state.row_shape) for n, state in enumerate(spec.states)]
        self._stepped_layout = lru_cache(NUM_KEPT_LAYOUTS)(self._make_stepped_layout)

    def write(self, answers: Sequence[Answer], max_bytes: int) -> Iterator[bytes]:
        """Messages of at most `max_bytes`, unless a single answer is longer; of one sequence in the order given."""
        pieces: list[bytes] = []
        size = HEAD.size
        for piece in self._pieces(answers, max_bytes - HEAD.size):
            if pieces and size + len(piece) > max_bytes:
                yield b"".join([HEAD.pack(MAGIC, size), *pieces])
                pieces, size = [], HEAD.size
            pieces.append(piece)
            size += len(piece)
        if pieces:
            yield b"".join([HEAD.pack(MAGIC, size), *pieces])

    def _pieces(self, answers: Sequence[Answer], max_bytes: int) -> Iterator[bytes]:
        """Blocks of at most `max_bytes`, unless a single answer is longer."""
        singles: list[Single] = []
        for answer in answers:
            if isinstance(answer, ManyStepped):
                yield from self._write_singles(singles, max_bytes)
                yield from self._write_many(answer, max_bytes)
                singles = []
            else:
                singles.append(answer)
        yield from self._write_singles(singles, max_bytes)

    def _write_singles(self, answers: list[Single], max_bytes: int) -> Iterator[bytes]:
        for run in _rounds(answers):
            for key, group in groupby(run, _key):
                yield from self._write_blocks(key, list(group), max_bytes)

    def _write_many(self, many: ManyStepped, max_bytes: int) -> Iterator[bytes]:
        steps = many.outputs.shape[1]
        flags = 0 if many.expires_at is None else EXPIRES
        layout = self._stepped_layout(steps, flags)
        records = np.empty(len(many.steps), layout)
        records["handle"], records["tag"], records["step"] = many.handles, many.tags, many.steps
        if many.expires_at is not None:
            records["expires_at"] = many.expires_at
        if steps:
            records["outputs"] = many.outputs
        most = max(1, (max_bytes - BLOCK.size) // layout.itemsize)
        for begin in range(0, len(records), most):
            part = records[begin : begin + most]
            yield BLOCK.pack(STEPPED, flags, steps, len(part)) + part.tobytes()

    def _write_blocks(self, key: _Key, answers: list[Any], max_bytes: int) -> Iterator[bytes]:
        """Blocks of like answers, each as long as fits."""
        kind, flags, steps = key
        if kind == ERROR:
            for answer in answers:
                yield BLOCK.pack(ERROR, 0, 0, 1) + _error(answer)
            return
        layout = self._stepped_layout(steps, flags & (STATE | EXPIRES)) if kind == STEPPED else _FIXED[kind]
        most = max(1, (max_bytes - BLOCK.size) // layout.itemsize)
        for begin in range(0, len(answers), most):
            part = answers[begin : begin + most]
            records = np.empty(len(part), layout)
            records["handle"] = [answer.handle for answer in part]
            records["tag"] = [answer.tag for answer in part]
            if kind != DELETED:
                records["step"] = [answer.step for answer in part]
            if kind == OPENED:
                records["expires_at"] = [answer.expires_at for answer in part]
            elif kind == STEPPED:
                self._fill(records, part, flags)
            yield BLOCK.pack(kind, flags, steps, len(part)) + records.tobytes()

    def _fill(self, records: NDArray[np.void], answers: list[Stepped], flags: int) -> None:
        if flags & EXPIRES:
            records["expires_at"] = [answer.expires_at for answer in answers]
        outputs = records["outputs"]
        if outputs.shape[1]:
            outputs[:] = np.concatenate([answer.outputs for answer in answers]).reshape(outputs.shape)
        if flags & STATE:
            states = zip(*(answer.state or () for answer in answers), strict=True)
            for (name, _), tensors in zip(self._states, states, strict=True):
                records[name] = np.stack(tensors)

    def _make_stepped_layout(self, steps: int, flags: int) -> np.dtype[np.void]:
        expires_at = [("expires_at", "<f8")] if flags & EXPIRES else []
        states = [(name, "<f4", shape) for name, shape in self._states] if flags & STATE else []
        return np.dtype([*WHERE, *expires_at, ("outputs", "<f4", (steps, *self._output_shape)), *states])


def _key(answer: Single) -> _Key:
    if isinstance(answer, Stepped):
        return (
            STEPPED,
            (STATE if answer.state is not None else 0)
            | (REPLAYED if answer.replayed else 0)
            | (EXPIRES if answer.expires_at is not None else 0),
            len(answer.outputs),
        )
    return (ERROR if isinstance(answer, Failed) else OPENED if isinstance(answer, Opened) else DELETED), 0, 0


def _rounds(answers: list[Single]) -> Iterator[list[Single]]:
    """Answers sorted by their block, in as few parts as keep those of each handle in order."""
    if len({_key(answer) for answer in answers}) < 2:
        yield answers
        return
    parts: list[Single] = []
    key_of: dict[int, _Key] = {}
    for answer in answers:
        key = _key(answer)
        if key_of.setdefault(answer.handle, key) != key:
            yield sorted(parts, key=_key)
            parts, key_of = [], {answer.handle: key}
        parts.append(answer)
    yield sorted(parts, key=_key)


def _error(answer: Failed) -> bytes:
    head = np.array([(answer.handle, answer.tag, answer.status, len(answer.document))], _ERROR)
    return head.tobytes() + answer.document
