"""The last answers of a sequence, so that a call whose reply was lost can be repeated without being run again."""

from __future__ import annotations

import struct
from hashlib import blake2b

import numpy as np

from service.engine.request import Array, Result
from service.model_spec import ModelSpec

NUM_ANSWERS = 16
"""Kept of each sequence, for as long as it lives."""

_HEAD = struct.Struct("<QQ16sII?")  # step before, step after, digest of the inputs, steps run, steps put out, state?


def digest(inputs: Array) -> bytes:
    """Tells one call's inputs from another's."""
    return blake2b(np.ascontiguousarray(inputs).data, digest_size=16).digest()


class Replays:
    """Answers packed as bytes: a sequence may have sixteen, and a server a hundred thousand sequences."""

    __slots__ = ("_packed",)

    def __init__(self) -> None:
        self._packed: list[bytes] = []

    def add(self, inputs: Array, result: Result) -> None:
        """Remember the answer to `inputs`; the oldest is forgotten when there are more than NUM_ANSWERS."""
        begun_at = result.position - result.steps
        shown = len(result.outputs)
        head = _HEAD.pack(begun_at, result.position, digest(inputs), result.steps, shown, result.state is not None)
        states = b"".join(state.tobytes() for state in result.state) if result.state else b""
        if len(self._packed) == NUM_ANSWERS:
            del self._packed[0]
        self._packed.append(head + result.outputs.tobytes() + states)

    def find(self, step: int, inputs: Array, spec: ModelSpec) -> Result | None:
        """The answer to the call that began at `step` with the same inputs, to the last bit."""
        for packed in reversed(self._packed):
            begun_at, position, seen, steps, shown, has_state = _HEAD.unpack_from(packed)
            if begun_at == step and seen == digest(inputs):
                return _unpack(packed, position, steps, shown, has_state, spec)
        return None


def _unpack(packed: bytes, position: int, steps: int, shown: int, has_state: bool, spec: ModelSpec) -> Result:
    values, at = np.frombuffer(packed, np.float32, offset=_HEAD.size), 0

    def take(shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        nonlocal at
        begin, at = at, at + int(np.prod(shape))
        return values[begin:at].reshape(shape)

    outputs = take((shown, *spec.output.step_shape))
    state = tuple(take(s.row_shape) for s in spec.states) if has_state else None
    return Result(outputs, steps, position, state, replayed=True)
