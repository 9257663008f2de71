"""The records of each sequence on one stream: they run, and are answered, in the order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from service.api.call import Call, Reply
from service.api.errors import internal_problem, problem
from service.api.sequences import find, step_or_start
from service.api.stream_records import Record
from service.engine.request import Result
from service.errors import CarouselError, SequenceGone, SequenceNotFound
from service.sequence import Sequence
from service.stores.store import Key

log = structlog.get_logger(__name__)


class Line:
    """One sequence's records: `waiting` are not begun, `owed` not answered."""

    __slots__ = ("driven", "in_volley", "key", "moved", "num_handles", "owed", "waiting")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.num_handles = 0
        self.waiting: deque[Record] = deque()
        self.owed: deque[Record] = deque()
        self.driven = False
        self.in_volley = False
        self.moved: asyncio.Future[None] | None = None
        """Of who waits for the answers before its own."""

    @property
    def is_busy(self) -> bool:
        """Is anything of it under way on this stream?"""
        return self.in_volley or self.driven or bool(self.owed)


class Lines:
    """Runs records against `Sequences` and hands each to `on_answer` when its turn to be answered has come."""

    def __init__(self, call: Call, on_answer: Callable[[Record], None], *, counted: bool = True) -> None:
        self._call = call
        self._model_name, self._version = call.path("model"), call.version
        self._sequences = call.service.sequences
        self._on_answer = on_answer
        self._lines: dict[Key, Line] = {}
        self._handles: dict[int, Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._counted = counted
        self.num_errors = 0

    def of_id(self, sequence_id: str) -> Line:
        key = (self._call.tenant, self._model_name, sequence_id)
        if (line := self._lines.get(key)) is None:
            line = self._lines[key] = Line(key)
        return line

    def of_handle(self, handle: int) -> Line | None:
        return self._handles.get(handle)

    def open(self, handle: int, sequence_id: str) -> Line:
        """From now on `handle` is this sequence."""
        if old := self._handles.get(handle):
            old.num_handles -= 1
            self._tidy(old)
        line = self._handles[handle] = self.of_id(sequence_id)
        line.num_handles += 1
        return line

    def add(self, line: Line, record: Record) -> None:
        line.owed.append(record)
        if line.driven or not self._begin(line, record):
            line.waiting.append(record)
            if not line.driven:
                line.driven = True
                self._run(self._drive(line))

    def refuse(self, record: Record, error: CarouselError) -> None:
        """Answer a record that belongs to no line."""
        record.fail(self.problem(error))
        self._on_answer(record)

    def problem(self, error: Exception) -> Reply:
        """What to tell of an error."""
        self.num_errors += 1
        path = self._call.scope["path"]
        if isinstance(error, CarouselError):
            code, reply = error.code, problem(error, path)
        else:
            log.error("record_failed", exc_info=error)
            code, reply = "internal_error", internal_problem(path)
        if self._counted:
            self._call.service.metrics.errors.labels(code).inc()
        return reply

    # -- the short way: steps of a live sequence whose turn it is, without a task ------------------------------------

    def _begin(self, line: Line, record: Record) -> bool:
        """False, and nothing done: the long way."""
        sequence = self._sequences.look_up(line.key) if record.action == "step" else None
        if sequence is None or record.is_long or self._version not in (None, sequence.model.version):
            return False

        def ended(outcome: Result | CarouselError) -> None:
            if isinstance(outcome, CarouselError):
                record.fail(self.problem(outcome))
            else:
                record.succeed(sequence, outcome)
            self._answer(line)

        try:
            return self._sequences.begin(sequence, record.work(sequence.model.spec), ended) is not None
        except Exception as error:
            self._fail(line, record, error)
            return True

    # -- the long way: one record after another, each when all before it are answered --------------------------------

    async def _drive(self, line: Line) -> None:
        while line.waiting:
            record = line.waiting.popleft()
            if self._begin(line, record):
                continue
            while line.owed[0] is not record:
                line.moved = asyncio.get_running_loop().create_future()
                await line.moved
            try:
                record.succeed(*await self._do(line, record))
            except Exception as error:
                self._fail(line, record, error)
            else:
                self._answer(line)
        line.driven = False

    async def _do(self, line: Line, record: Record) -> tuple[Sequence | None, Result | None]:
        if record.action == "step":
            return await self._step(line, record)
        if record.action == "delete":
            await self._sequences.delete(await find(self._call, line.key[2], fresh=True))
            return None, None
        try:
            return await find(self._call, line.key[2], fresh=True), None
        except (SequenceNotFound, SequenceGone):
            return None, None

    async def _step(self, line: Line, record: Record) -> tuple[Sequence, Result]:
        async def run(sequence: Sequence) -> Result:
            spec = sequence.model.spec
            work = await self._call.service.read(record.work, spec) if record.is_long else record.work(spec)
            return await self._sequences.step(
                sequence,
                work.inputs,
                step=work.step,
                outputs=work.outputs,
                return_state=work.return_state,
                commit=work.commit,
            )

        return await step_or_start(self._call, line.key[2], record.step, run, start=record.start)

    # -- answers -----------------------------------------------------------------------------------------------------

    def _fail(self, line: Line, record: Record, error: Exception) -> None:
        record.fail(self.problem(error))
        self._answer(line)

    def _answer(self, line: Line) -> None:
        owed = line.owed
        while owed and owed[0].answer is not None:
            self._on_answer(owed.popleft())
        if line.moved is not None:
            line.moved.set_result(None)
            line.moved = None
        self._tidy(line)

    def _tidy(self, line: Line) -> None:
        if not line.owed and not line.num_handles:
            self._lines.pop(line.key, None)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._tasks.discard)
