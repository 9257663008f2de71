"""The binary form of a stream, subprotocol `carousel.v1.binary`: many records of many sequences a message.

All numbers are little-endian and nothing is padded. A message is a head and blocks, one after another to its end:

    head          0  4 bytes  "CRB1"
                  4  u32      length of the whole message in bytes
    block head    0  u8       kind
                  1  u8       flags
                  2  u16      T, the steps in each record; 0 where the kind has none
                  4  u32      N, the records that follow

Every record of a block is equally long, so that a block is read by one look at memory. A client names a sequence once,
by OPEN, and by its handle from then on: a number below the limit of sequences a stream, of the client's choice, which a
later OPEN may give to another sequence. `tag` is echoed in the answer, and means nothing to the server. Answers of one
handle come in the order of its records; answers of different handles in any order and any grouping.

    client -> server
      1 OPEN      handle u32, tag u32, sequence id in ASCII, filled up with zeros to 128 bytes
      2 STEP      handle u32, tag u32, step u64, inputs T x the model's input: float32, or int64 token ids
                  step: as in POST .../steps; 2^64-1 leaves it out
                  flags: 1 outputs of the last step only, 2 no outputs, 4 return the state, 8 do not commit,
                         16 start the sequence if it is not there, 64 tell until when it is kept
      3 DELETE    handle u32, tag u32; the sequence ends, its handle stays
    server -> client
      129 OPENED  handle u32, tag u32, step u64, expires_at f64 in seconds since the epoch; where the sequence stands,
                  or 2^64-1 and 0 for one that is not there
      130 STEPPED handle u32, tag u32, step u64 after the inputs, outputs T x the model's output float32; T is 1 or 0
                  where only the last or none were asked for
                  flags: 4 then each state as in the model card, float32; 32 replayed: nothing was run
                  again, and the answer has the form that was asked for first
      131 DELETED handle u32, tag u32
      132 ERROR   N times handle u32, tag u32, status u32, length u32; then the N problem documents of these lengths,
                  JSON, as HTTP answers them. A message that cannot be read is answered by one with handle 2^32-1;
                  nothing of it was run.

Example, a model of two inputs and two outputs that adds up. Handles 0 and 1 are open; each goes one step from step 0:

    43 52 42 31  40 00 00 00                            "CRB1", 64 bytes
    02 10 01 00  02 00 00 00                            STEP, start, T = 1, N = 2
    00 00 00 00  07 00 00 00  00 00 00 00 00 00 00 00   handle 0, tag 7, step 0
    00 00 80 3f  00 00 00 40                            1.0, 2.0
    01 00 00 00  08 00 00 00  00 00 00 00 00 00 00 00   handle 1, tag 8, step 0
    00 00 40 40  00 00 80 40                            3.0, 4.0

and its answer:

    43 52 42 31  40 00 00 00                            "CRB1", 64 bytes
    82 00 01 00  02 00 00 00                            STEPPED, T = 1, N = 2
    00 00 00 00  07 00 00 00  01 00 00 00 00 00 00 00   handle 0, tag 7, stands at step 1
    00 00 80 3f  00 00 00 40                            1.0, 2.0
    01 00 00 00  08 00 00 00  01 00 00 00 00 00 00 00   handle 1, tag 8, stands at step 1
    00 00 40 40  00 00 80 40                            3.0, 4.0

This module reads what clients send; `frame_answers.py` writes the answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, MalformedRequest
from service.model_spec import ModelSpec, TensorSpec
from service.protocol.bodies import Outputs

BINARY = "carousel.v1.binary"
MAGIC = b"CRB1"
HEAD, BLOCK = Struct("<4sI"), Struct("<BBHI")
OPEN, STEP, DELETE = 1, 2, 3
OPENED, STEPPED, DELETED, ERROR = 129, 130, 131, 132
LAST, NONE, STATE, SCORE, START, REPLAYED, EXPIRES = 1, 2, 4, 8, 16, 32, 64
NO_STEP = 2**64 - 1
NO_HANDLE = 2**32 - 1
ID_BYTES = 128

WHO: list[Any] = [("handle", "<u4"), ("tag", "<u4")]
WHERE: list[Any] = [*WHO, ("step", "<u8")]
"""What records begin with."""

NUM_KEPT_LAYOUTS = 32
"""Of records of one kind, one for each T."""

_WHERE_BYTES = np.dtype(WHERE).itemsize
_FIXED = {OPEN: np.dtype([*WHO, ("id", f"S{ID_BYTES}")]), DELETE: np.dtype(WHO)}
_NAMES = {OPEN: "OPEN", STEP: "STEP", DELETE: "DELETE"}
_STEP_FLAGS = LAST | NONE | STATE | SCORE | START | EXPIRES
_OUTPUTS: dict[int, Outputs] = {0: "all", LAST: "last", NONE: "none"}


@dataclass(slots=True)
class Block:
    """Records of one kind: a view of the message, with the fields that the layout names."""

    kind: int
    flags: int
    steps_each: int
    records: NDArray[np.void]

    @property
    def outputs(self) -> Outputs:
        return _OUTPUTS[self.flags & (LAST | NONE)]

    @property
    def return_state(self) -> bool:
        return bool(self.flags & STATE)

    @property
    def commit(self) -> bool:
        return not self.flags & SCORE

    @property
    def start(self) -> bool:
        return bool(self.flags & START)

    @property
    def tell_expiry(self) -> bool:
        return bool(self.flags & EXPIRES)

    @property
    def num_steps(self) -> int:
        """Of all records together."""
        return len(self.records) * self.steps_each

    def steps(self) -> list[int | None]:
        """The step that each record names, None where it names none."""
        steps = self.records["step"]
        listed: list[int | None] = steps.tolist()
        return [None if step == NO_STEP else step for step in listed] if (steps == NO_STEP).any() else listed

    def all_inputs(self, tensor: TensorSpec) -> tuple[NDArray[Any], list[bool]]:
        """Of all records, (N, T, ...), and whether those of each fit the model."""
        inputs = np.ascontiguousarray(self.records["inputs"])
        fit = _fits(inputs, tensor)
        if fit.all():
            return inputs, [True] * len(inputs)
        return inputs, [bool(fine) for fine in fit.reshape(len(inputs), -1).all(axis=1)]  # type: ignore[union-attr]

    def inputs(self, tensor: TensorSpec) -> list[NDArray[Any] | InvalidInput]:
        """Of each record, `(T, F)` or `(T,)`, or why it does not fit the model."""
        inputs, fit = self.all_inputs(tensor)
        return [x if fine else _misfit(x, tensor) for x, fine in zip(inputs, fit, strict=True)]

    def at(self, places: list[int]) -> Block:
        """A block of only these records."""
        return Block(self.kind, self.flags, self.steps_each, self.records[places])


class FrameReader:
    """Reads messages about one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self._input = spec.input
        # bounded: T is whatever a client says
        self._step_layout = lru_cache(NUM_KEPT_LAYOUTS)(self._make_step_layout)

    def read(self, message: bytes) -> list[Block]:
        """The blocks of a client's message. Raises MalformedRequest: what is wrong, and in which block."""
        if len(message) < HEAD.size or not message.startswith(MAGIC):
            _refuse(f"a message begins with {MAGIC.decode()} and its length, this one with {message[:8].hex(' ')}.")
        _, length = HEAD.unpack_from(message)
        if length != len(message):
            _refuse(f"its head says {length} bytes, and {len(message)} came.", expected=length, received=len(message))
        blocks: list[Block] = []
        at = HEAD.size
        while at < length:
            block, at = self._read_block(message, at, f"block {len(blocks)}")
            blocks.append(block)
        return blocks

    def _read_block(self, message: bytes, at: int, place: str) -> tuple[Block, int]:
        if at + BLOCK.size > len(message):
            _refuse(f"{place} breaks off in its head.")
        kind, flags, steps, count = BLOCK.unpack_from(message, at)
        at += BLOCK.size
        if kind not in _NAMES:
            _refuse(f"{place} is of kind {kind}.", expected=list(_NAMES), received=kind)
        allowed = _STEP_FLAGS if kind == STEP else 0
        if flags & ~allowed or flags & (LAST | NONE) == LAST | NONE:
            _refuse(f"{place}: {_NAMES[kind]} has no such flags: {flags}.")
        if (steps > 0) != (kind == STEP):
            _refuse(f"{place}: {_NAMES[kind]} with T = {steps}.")
        # before a layout is made: NumPy refuses records of gigabytes in its own words
        size = _WHERE_BYTES + steps * self._input.step_bytes if kind == STEP else _FIXED[kind].itemsize
        if at + count * size > len(message):
            _refuse(f"{place}: {count} records of {size} bytes reach beyond the end of the message.")
        layout = self._step_layout(steps) if kind == STEP else _FIXED[kind]
        records = np.frombuffer(message, layout, count, at) if count else np.empty(0, layout)
        return Block(kind, flags, steps, records), at + count * size

    def _make_step_layout(self, steps: int) -> np.dtype[np.void]:
        kind = "<i8" if self._input.dtype == "int64" else "<f4"
        return np.dtype([*WHERE, ("inputs", kind, (steps, *self._input.step_shape))])


def _misfit(inputs: NDArray[Any], tensor: TensorSpec) -> InvalidInput:
    """Why a record's inputs do not fit: a number that is not finite, a token that is not there."""
    where = tuple(np.argwhere(~_fits(inputs, tensor))[0])
    place, value = "inputs" + "".join(f"[{index}]" for index in where), inputs[where]
    if tensor.dtype == "int64":
        expected = f"0..{np.broadcast_to(tensor.token_limits, inputs.shape)[where] - 1}"
        return InvalidInput(f"{place}: no such token: {value}.", place=place, expected=expected, received=int(value))
    expected = "a finite number"
    return InvalidInput(f"{place}: expected {expected}, got {value}.", place=place, expected=expected)


def _fits(inputs: NDArray[Any], tensor: TensorSpec) -> NDArray[np.bool_]:
    """Element by element."""
    if tensor.dtype == "int64":
        return np.logical_and(inputs >= 0, inputs < tensor.token_limits)
    fit: NDArray[np.bool_] = np.isfinite(inputs)
    return fit


def _refuse(why: str, **fields: Any) -> NoReturn:
    raise MalformedRequest(f"The binary message cannot be read: {why}", **fields)
