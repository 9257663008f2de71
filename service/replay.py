"""The last answers of a sequence, so that a call whose reply was lost can be repeated and the stream moves once.

A small answer is kept as it is. Of a large one only what it was computed from is kept, the state before the call: the
caller brings the inputs again, and the same state and inputs give the same answer, bit for bit.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.request import Array, Outputs, Result, State
from service.model_spec import ModelSpec
from service.stores.store import NUM_ANSWERS

_FRESH = blake2b(digest_size=16)
_NOTHING = np.empty(0, np.float32)

LARGE_ANSWER_BYTES = 1024
"""An answer larger than this, or than the state, is computed anew when it is asked for again."""

_HEAD = struct.Struct("<QQ16sI??")  # step before, step after, digest of the inputs, steps put out, state?, large?

_HEAD_FIELDS: list[Any] = [("before", "<u8"), ("after", "<u8"), ("digest", "V16"), ("shown", "<u4"), ("flags", "<u2")]
"""The same for NumPy."""


@dataclass(slots=True)
class Recipe:
    """How a large answer comes about again."""

    state: State
    outputs: Outputs
    return_state: bool
    position: int


@dataclass(slots=True)
class Kept:
    """What is kept of a call, for whoever can say what its inputs were only by making them again."""

    position: int
    """Where it led to."""
    digest: bytes
    start: State | None
    """The state before it, if its answer was large."""
    outputs: NDArray[np.float32]
    """All of them, else."""
    end: State
    """The state after it, else."""

    def is_of(self, inputs: Array) -> bool:
        return self.digest == _digest(inputs)


def pack_answer(inputs: Array, result: Result, before: State | None) -> bytes:
    """What is kept of the answer to `inputs`; the state `before` is given for a large one."""
    begun_at, has_state, large = result.position - result.steps, result.state is not None, before is not None
    head = _HEAD.pack(begun_at, result.position, _digest(inputs), len(result.outputs), has_state, large)
    tensors = before if before is not None else (result.outputs, *(result.state or ()))
    return b"".join([head, *(tensor.tobytes() for tensor in tensors)])


class Replays:
    """Answers packed as bytes: a sequence may have sixteen, and a server a hundred thousand sequences."""

    __slots__ = ("packed",)

    def __init__(self, packed: list[bytes] | None = None) -> None:
        self.packed = packed or []
        """Oldest first."""

    def append(self, answer: bytes) -> None:
        """The oldest is forgotten when there are more than NUM_ANSWERS."""
        if len(self.packed) >= NUM_ANSWERS:
            del self.packed[0]
        self.packed.append(answer)

    def find(self, step: int, inputs: Array, spec: ModelSpec) -> Result | Recipe | None:
        """The answer to the call that began at `step` with the same inputs, to the last bit."""
        for packed in reversed(self.packed):
            begun_at, position, seen, shown, has_state, large = _HEAD.unpack_from(packed)
            if begun_at != step or seen != _digest(inputs):
                continue
            states = [state.row_shape for state in spec.states]
            if large:
                outputs: Outputs = "none" if not shown else "all" if shown == len(inputs) else "last"
                return Recipe(tuple(_unpack(packed, states)), outputs, has_state, position)
            y, *state = _unpack(packed, [(shown, *spec.output.step_shape), *(states if has_state else [])])
            return Result(y, len(inputs), position, tuple(state) if has_state else None, replayed=True)
        return None

    def begun_at(self, step: int, spec: ModelSpec) -> Kept | None:
        """Of the call that moved the sequence on from `step`: None too if neither is kept, the state before nor all."""
        states = [state.row_shape for state in spec.states]
        for packed in reversed(self.packed):
            begun_at, position, digest, shown, has_state, large = _HEAD.unpack_from(packed)
            if begun_at != step:
                continue
            if large:
                return Kept(position, digest, tuple(_unpack(packed, states)), _NOTHING, ())
            if has_state and shown == position - begun_at:
                y, *state = _unpack(packed, [(shown, *spec.output.step_shape), *states])
                return Kept(position, digest, None, y, tuple(state))
        return None


def pack_answers(inputs: Array, outputs: NDArray[np.float32], begun_at: list[int]) -> list[bytes]:
    """What is kept of many small answers at once: `inputs` (N, T, ...) from these steps, and their `outputs`."""
    rows, steps = inputs.shape[:2]
    sent, size = inputs.tobytes(), inputs.nbytes // rows
    digests = [_digest_of(sent[at : at + size]) for at in range(0, len(sent), size)]
    packed = np.zeros(rows, [*_HEAD_FIELDS, ("outputs", "<f4", outputs.shape[1:])])
    packed["before"], packed["digest"] = begun_at, np.frombuffer(b"".join(digests), "V16")
    packed["after"] = packed["before"] + np.uint64(steps)
    packed["shown"], packed["outputs"] = outputs.shape[1], outputs
    kept, size = packed.tobytes(), packed.itemsize
    return [kept[at : at + size] for at in range(0, len(kept), size)]


def is_large(num_steps: int, spec: ModelSpec) -> bool:
    """Would the answer to `num_steps` steps take more room than what it is computed from?"""
    return num_steps * spec.output.step_bytes > max(LARGE_ANSWER_BYTES, spec.state_bytes)


def _digest(inputs: Array) -> bytes:
    return _digest_of(np.ascontiguousarray(inputs).data)


def _digest_of(data: bytes | memoryview) -> bytes:
    hashed = _FRESH.copy()  # half the time of making one
    hashed.update(data)
    return hashed.digest()


def _unpack(packed: bytes, shapes: list[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    values = np.frombuffer(packed, np.float32, offset=_HEAD.size)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(values, ends[:-1]), shapes, strict=True)]
