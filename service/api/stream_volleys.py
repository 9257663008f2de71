"""Blocks of steps that go as volleys: no object a record on the way in, through the engine, and out again.

The plain case: sequences that stand where the block says, and nothing of them is under way. Records that are not that
are left to `Lines`, once no volley of theirs is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.api.call import Call
from service.api.stream_lines import Line, Lines
from service.api.stream_records import same_layout
from service.engine.request import Array
from service.errors import CarouselError
from service.model_spec import ModelSpec
from service.protocol.frame_answers import Failed, ManyStepped
from service.protocol.frames import Block
from service.registry import LoadedModel
from service.replay import is_large
from service.sequence import Sequence
from service.volley_calls import VolleyResult, ready

LEAST_ROWS = 8
"""Fewer are better off sharing runs with those of other callers."""
MOST_STEPS = 32
"""Of a record. The engine cuts longer ones up, so that others get their turn."""

Emit = Callable[[Any, int, int], None]
"""Takes an answer, how many records it is the answer to, and the bytes that are owed for them."""

_Taken = tuple[int, Line, Sequence]
"""A record's place in its block, its line, its sequence."""


class StreamVolleys:
    """Those of one stream."""

    def __init__(self, call: Call, spec: ModelSpec, lines: Lines, emit: Emit) -> None:
        self._version = call.version
        self._sequences = call.service.sequences
        self._spec = spec
        self._lines = lines
        self._emit = emit
        self.num_running = 0

    def suits(self, block: Block) -> bool:
        """Is it worth looking at its records?"""
        return (
            len(block.records) >= LEAST_ROWS
            and block.commit
            and not block.return_state
            and block.steps_each <= MOST_STEPS
            and not is_large(block.steps_each, self._spec)
        )

    def is_free(self, block: Block) -> bool:
        """Is no sequence of it in a volley?"""
        if not self.num_running:
            return True
        lines = map(self._lines.of_handle, block.records["handle"].tolist())
        return not any(line is not None and line.in_volley for line in lines)

    def take(self, block: Block, owed_bytes: int) -> list[int]:
        """Begin the steps that can go as volleys; the places of the records that cannot. `owed_bytes` for each."""
        inputs, fit = block.all_inputs(self._spec.input)
        model: LoadedModel | None = None
        taken: list[_Taken] = []
        left: list[int] = []
        left_lines: set[Line | None] = set()  # what comes after a record that is left must not overtake it
        of_handle, look_up = self._lines.of_handle, self._sequences.look_up
        for place, (handle, step) in enumerate(zip(block.records["handle"].tolist(), block.steps(), strict=True)):
            line = of_handle(handle)
            sequence = None if line is None or line.is_busy else look_up(line.key)
            if line is None or sequence is None or line in left_lines or not fit[place] or not ready(sequence, step):
                left.append(place)
                left_lines.add(line)
            elif sequence.model is model or (model is None and self._fits(sequence.model)):
                model, line.in_volley = sequence.model, True
                taken.append((place, line, sequence))
            else:
                left.append(place)
                left_lines.add(line)
        if model is None or len(taken) < LEAST_ROWS:
            for _, line, _ in taken:
                line.in_volley = False
            return list(range(len(block.records)))
        most = model.engine.max_volley_rows(block.steps_each)
        for begin in range(0, len(taken), most):
            self._fire(block, inputs, taken[begin : begin + most], owed_bytes)
        return left

    def _fits(self, model: LoadedModel) -> bool:
        return self._version in (None, model.version) and same_layout(model.spec, self._spec)

    def _fire(self, block: Block, inputs: Array, taken: list[_Taken], owed_bytes: int) -> None:
        first, count = taken[0][0], len(taken)
        adjoin = taken[-1][0] == first + count - 1  # mostly: then it is a view, and no copy
        places = slice(first, first + count) if adjoin else [place for place, _, _ in taken]
        records = block.records[places]

        def ended(result: VolleyResult) -> None:
            self.num_running -= 1
            for _, line, _ in taken:
                line.in_volley = False
            expires_at = [sequence.expires_at for sequence in sequences] if block.tell_expiry else None
            self._answer(records, result, expires_at, owed_bytes)

        sequences = tuple(sequence for _, _, sequence in taken)
        self.num_running += 1
        try:
            self._sequences.begin_volley(sequences, inputs[places], block.outputs, ended)
        except CarouselError as error:
            ended(VolleyResult(np.empty((0, 0), np.float32), [], dict.fromkeys(range(count), error)))

    def _answer(
        self, records: NDArray[np.void], result: VolleyResult, expires_at: list[float] | None, owed_bytes: int
    ) -> None:
        handles, tags, steps, outputs = records["handle"], records["tag"], result.positions, result.outputs
        if result.errors:
            for place, error in result.errors.items():
                reply = self._lines.problem(error)
                self._emit(Failed(int(handles[place]), int(tags[place]), reply.status, reply.body), 1, owed_bytes)
            good = [place for place in range(len(records)) if place not in result.errors]
            if not good:
                return
            handles, tags, steps, outputs = handles[good], tags[good], [steps[place] for place in good], outputs[good]
            expires_at = [expires_at[place] for place in good] if expires_at else None
        self._emit(ManyStepped(handles, tags, steps, outputs, expires_at), len(steps), len(steps) * owed_bytes)
