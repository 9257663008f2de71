"""A worker's side of one stream: calls of one tenant to one model out, as many as came in a moment together."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.model_spec import ModelSpec
from service.protocol.answers import steps_document
from service.protocol.bodies import Outputs, ReadStepsBody, is_sequence_id
from service.protocol.codec import JSON
from service.protocol.frames import (
    BLOCK,
    ERROR,
    EXPIRES,
    HEAD,
    ID_BYTES,
    LAST,
    MAGIC,
    NO_HANDLE,
    NO_STEP,
    NONE,
    NUM_KEPT_LAYOUTS,
    OPEN,
    OPENED,
    REPLAYED,
    SCORE,
    START,
    STATE,
    STEP,
    STEPPED,
    WHERE,
    WHO,
)
from service.protocol.misfits import MISFITS
from service.protocol.steps import StepsReader
from service.workers.limits import STEPS_PATH, Limits

MOST_STEPS = 2**16 - 1
"""Of a record."""

TAG_OF_OPEN = 0
"""Nobody waits for the answer."""

_UNSURE = {"store_unavailable", "internal_error"}
"""Errors that do not say whether the steps are done: a call without a step number must not be run again."""

_OUTPUTS: dict[Outputs, int] = {"all": 0, "last": LAST, "none": NONE}
_OPEN = np.dtype([*WHO, ("id", f"S{ID_BYTES}")])
_OPENED_BYTES = np.dtype([*WHERE, ("expires_at", "<f8")]).itemsize
_ERROR = np.dtype([*WHO, ("status", "<u4"), ("length", "<u4")])

Inputs = NDArray[Any]


class Caller(Protocol):
    """Who waits for the answer of one call."""

    def answer(self, body: bytes) -> None: ...

    def fail(self, status: int, document: bytes) -> None:
        """With a problem document."""

    def give_back(self) -> None:
        """The engine's process shall say what comes of the call: it moved nothing, or names its step."""


class StepsStream:
    """`send` takes a message of `carousel.v1.binary`."""

    def __init__(self, model: str, spec: ModelSpec, limits: Limits, send: Callable[[bytes], None]) -> None:
        """`model`: the name that it is served by, which its file may not have."""
        self._model = model
        self._spec = spec
        self._limits = limits
        self._send = send
        self._read = StepsReader(spec).read
        self._handles: dict[str, int] = {}
        """Of sequences, those opened first before the others."""
        self._opens: list[tuple[int, int, bytes]] = []
        self._steps: defaultdict[tuple[int, int], list[tuple[int, int, int, Inputs]]] = defaultdict(list)
        """Handle, tag, step and inputs of what was asked in this moment, by flags and number of steps."""
        self._asked: dict[int, tuple[Caller, str, bool]] = {}
        """By tag: who waits, the sequence, and whether the call may be run again."""
        self._last_tag = 0
        self._is_due = False
        self._loop = asyncio.get_running_loop()
        self._step_layout = lru_cache(NUM_KEPT_LAYOUTS)(self._make_step_layout)
        self._stepped_layout = lru_cache(NUM_KEPT_LAYOUTS)(self._make_stepped_layout)

    # -- out ---------------------------------------------------------------------------------------------------------

    def ask(self, caller: Caller, sequence_id: str, body: bytes) -> bool:
        """Send the steps of a JSON body on. False, and nothing done: it is not what the model takes."""
        try:
            fields, inputs = self._read(body)
        except MISFITS:
            return False
        if len(inputs) > min(self._limits.max_steps, MOST_STEPS):
            return False
        handle = self._handles.get(sequence_id)
        if handle is None:
            if not is_sequence_id(sequence_id):
                return False
            handle = self._open(sequence_id)
        tag = self._last_tag = self._last_tag % (2**32 - 1) + 1
        self._asked[tag] = caller, sequence_id, fields.step is not None
        step = NO_STEP if fields.step is None else fields.step
        self._steps[_flags(fields), len(inputs)].append((handle, tag, step, inputs))
        self._make_due()
        return True

    def _open(self, sequence_id: str) -> int:
        if len(self._handles) == self._limits.max_stream_sequences:
            self._flush()  # what goes by the handle that is taken goes first
            handle = self._handles.pop(next(iter(self._handles)))
        else:
            handle = len(self._handles)
        self._handles[sequence_id] = handle
        self._opens.append((handle, TAG_OF_OPEN, sequence_id.encode()))
        return handle

    def _make_due(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what was asked: a message for each block, since mostly there is one."""
        self._is_due = False
        opens, self._opens = self._opens, []
        most = self._limits.max_stream_records
        for at in range(0, len(opens), most):
            records = np.array(opens[at : at + most], _OPEN)
            self._send_block(OPEN, 0, 0, records)
        asked = list(self._steps.items())
        self._steps.clear()
        for (flags, steps), calls in asked:
            most = max(1, min(self._limits.max_stream_records, self._limits.max_steps // steps))
            for at in range(0, len(calls), most):
                self._send_block(STEP, flags, steps, self._records(steps, calls[at : at + most]))

    def _records(self, steps: int, calls: list[tuple[int, int, int, Inputs]]) -> NDArray[np.void]:
        records = np.empty(len(calls), self._step_layout(steps))
        records["handle"], records["tag"], records["step"] = (
            [call[0] for call in calls],
            [call[1] for call in calls],
            np.array([call[2] for call in calls], np.uint64),
        )
        records["inputs"] = [call[3] for call in calls]
        return records

    def _send_block(self, kind: int, flags: int, steps: int, records: NDArray[np.void]) -> None:
        size = HEAD.size + BLOCK.size + records.nbytes
        self._send(HEAD.pack(MAGIC, size) + BLOCK.pack(kind, flags, steps, len(records)) + records.tobytes())

    def _make_step_layout(self, steps: int) -> np.dtype[np.void]:
        kind = "<i8" if self._spec.input.dtype == "int64" else "<f4"
        return np.dtype([*WHERE, ("inputs", kind, (steps, *self._spec.input.step_shape))])

    # -- in ----------------------------------------------------------------------------------------------------------

    def take(self, message: bytes) -> None:
        """Answer whom the message has answers for."""
        at = HEAD.size
        while at < len(message):
            kind, flags, steps, count = BLOCK.unpack_from(message, at)
            at += BLOCK.size
            if kind == STEPPED:
                layout = self._stepped_layout(steps, flags & STATE)
                self._answer(np.frombuffer(message, layout, count, at), replayed=bool(flags & REPLAYED))
                at += count * layout.itemsize
            elif kind == ERROR:
                errors = np.frombuffer(message, _ERROR, count, at)
                at += errors.nbytes
                for handle, tag, status, length in errors.tolist():
                    self._fail(handle, tag, status, message[at : at + length])
                    at += length
            else:
                assert kind == OPENED, "nothing else is asked"
                at += count * _OPENED_BYTES

    def _answer(self, records: NDArray[np.void], *, replayed: bool) -> None:
        outputs = np.ascontiguousarray(records["outputs"])
        names = records.dtype.names or ()
        states = [np.ascontiguousarray(records[name]) for name in names if name.startswith("state")]
        rows = zip(records["tag"].tolist(), records["step"].tolist(), records["expires_at"].tolist(), strict=True)
        for n, (tag, step, expires_at) in enumerate(rows):
            caller, sequence_id, _ = self._asked.pop(tag)
            state = tuple(tensor[n] for tensor in states) if states else None
            caller.answer(
                JSON.encode(
                    steps_document(self._spec, sequence_id, step, outputs[n], state, expires_at, replayed=replayed)
                )
            )

    def _fail(self, handle: int, tag: int, status: int, document: bytes) -> None:
        if handle == NO_HANDLE:
            raise RuntimeError("a frame could not be read: its callers would wait for ever")
        if tag == TAG_OF_OPEN:
            return
        caller, sequence_id, may_run_again = self._asked.pop(tag)
        if not may_run_again and (problem := JSON.tree(document))["code"] in _UNSURE:
            path = STEPS_PATH.format(model=self._model, sequence_id=sequence_id)
            caller.fail(status, JSON.encode({**problem, "instance": path}))
        else:
            caller.give_back()

    def _make_stepped_layout(self, steps: int, with_state: int) -> np.dtype[np.void]:
        states = [(f"state {n}", "<f4", state.row_shape) for n, state in enumerate(self._spec.states)]
        outputs = [("expires_at", "<f8"), ("outputs", "<f4", (steps, *self._spec.output.step_shape))]
        return np.dtype([*WHERE, *outputs, *(states if with_state else ())])


def _flags(fields: ReadStepsBody[Any]) -> int:
    return (
        EXPIRES
        | _OUTPUTS[fields.outputs]
        | (STATE if fields.return_state else 0)
        | (0 if fields.commit else SCORE)
        | (START if fields.start else 0)
    )
