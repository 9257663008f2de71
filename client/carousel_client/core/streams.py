"""A stream without I/O: what is to be sent, and what the answers mean, over as many connections as it takes.

Each step has its number. When a connection is lost, everything that was not answered is sent again on the next one:
what the server had done already it answers from memory, so nothing is done twice and nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from numpy.typing import ArrayLike
from websockets.exceptions import ConnectionClosed, InvalidStatus

from carousel_client.core.arrays import to_array
from carousel_client.core.calls import connection_failed
from carousel_client.core.frames import (
    LAST,
    NO_HANDLE,
    NONE,
    SCORE,
    START,
    STATE,
    STEPPED,
    Answer,
    Asked,
    Frames,
    Opening,
)
from carousel_client.core.lines import Line, Outcome, Record
from carousel_client.core.results import ModelCard, Stepped
from carousel_client.core.retries import Attempts, Pace
from carousel_client.core.rollouts import Outputs
from carousel_client.errors import (
    CarouselError,
    ConnectionFailed,
    SequenceGone,
    TooLarge,
    UnexpectedAnswer,
    from_answer,
    from_problem,
)

MAX_RECORDS, MAX_BYTES = 1024, 2**20
"""Under way at once, answers counted too; a single record may be longer."""
MAX_MESSAGE_BYTES = 2**18
MAX_WAITING = 4096
"""Records that a caller may be ahead of what can be sent."""

TOO_BIG = 1009
REFUSED = {1002, 1003, 1007, 1008}
"""Close codes after which the same again would end the same."""


class Exchange:
    """Of one stream. Everything is settled in the order of its sequence."""

    def __init__(self, card: ModelCard, pace: Pace) -> None:
        self._frames, self._pace = Frames(card), pace
        self._lines: dict[str, Line] = {}
        self._waiting: dict[Line, None] = {}
        self._asked: dict[int, tuple[Line, Record | None]] = {}
        self._tags, self._handles = count(1), count()
        self._free_handles: list[int] = []
        self._bytes_under_way = 0
        self._num_unsettled = 0
        self._attempts: Attempts | None = None

    @property
    def has_work(self) -> bool:
        return self._num_unsettled > 0

    @property
    def has_room(self) -> bool:
        return self._num_unsettled < MAX_WAITING

    def position(self, id: str) -> int | None:
        """Where the sequence stood after the last answer; None where nothing is known of it."""
        line = self._lines.get(id)
        return line.position if line else None

    def step(
        self,
        id: str,
        inputs: ArrayLike,
        settle: Callable[[Outcome], None],
        *,
        outputs: Outputs = "all",
        commit: bool = True,
        return_state: bool = False,
    ) -> None:
        """Raises InvalidInput."""
        array = self._frames.check(to_array(inputs, "inputs"))
        flags = {"all": 0, "last": LAST, "none": NONE}[outputs]
        flags |= (0 if commit else SCORE) | (STATE if return_state else 0)
        self._add(id, Record(settle, array, flags, self._frames.size(len(array), flags)))

    def delete(self, id: str, settle: Callable[[Outcome], None]) -> None:
        self._add(id, Record(settle, None, 0, self._frames.size(0, NONE)))

    def seconds_to_wait(self) -> float | None:
        """Until there is something to be sent that is held back now; None: until something comes."""
        now = self._pace.now()
        held = [line.ready_at for line in self._waiting if line.ready_at > now]
        return min(held) - now if held else None

    def outgoing(self) -> list[bytes]:
        """Messages that can be sent now."""
        messages: list[bytes] = []
        while message := self._next_message():
            messages.append(message)
        return messages

    def receive(self, message: str | bytes) -> None:
        """Settles what it answers. Raises CarouselError when the connection cannot go on."""
        if isinstance(message, str):
            raise UnexpectedAnswer("A text came on a binary stream.")
        for answer in self._frames.read(message):
            if answer.handle == NO_HANDLE and answer.problem is not None:
                raise from_problem(answer.problem)
            line, record = self._asked.pop(answer.tag, (None, None))
            if line is not None:  # else it was taken back meanwhile, and is asked again
                self._take(line, record, answer)

    def lost(self, error: Exception) -> float:
        """The connection is: seconds until the next is to be made, as far as there is anything to be done on it.

        When it is not to be tried again, everything fails with the reason.
        """
        for line in self._lines.values():
            line.named = False
            if line.sent:
                self._fall_back(line)
        self._asked.clear()
        if not self.has_work:
            self._attempts = None
            return 0.0
        failure = _failure_of(error)
        self._attempts = self._attempts or Attempts(self._pace)
        try:
            if not self._pace.wants_again(failure):
                raise failure
            return self._attempts.wait_after(failure)
        except CarouselError:
            self.fail(failure)
            return 0.0

    def fail(self, error: CarouselError) -> None:
        """Everything that is not answered. The sequences are held to stand where the last answers left them."""
        self._attempts = None
        self._waiting.clear()
        self._asked.clear()
        self._bytes_under_way = 0
        for line in self._lines.values():
            line.named = False
            unsettled = [*line.sent, *line.queue]
            line.sent.clear()
            line.queue.clear()
            for record in unsettled:
                record.settle(error)

    # -- out ---------------------------------------------------------------------------------------------------------

    def _add(self, id: str, record: Record) -> None:
        settle = record.settle

        def settled(outcome: Outcome) -> None:
            self._num_unsettled -= 1
            settle(outcome)

        record.settle = settled
        line = self._lines.get(id) or self._new_line(id)
        line.queue.append(record)
        self._waiting[line] = None
        self._num_unsettled += 1

    def _new_line(self, id: str) -> Line:
        handle = self._free_handles.pop() if self._free_handles else next(self._handles)
        line = self._lines[id] = Line(id, handle)
        return line

    def _next_message(self) -> bytes | None:
        opens, rounds, size = self._take_opens(), [], 0
        while size < MAX_MESSAGE_BYTES and (taken := self._take_round(MAX_MESSAGE_BYTES - size)):
            rounds.append([asked for asked, _ in taken])
            size += sum(bytes_ for _, bytes_ in taken)
        return self._frames.write(opens, rounds) if opens or rounds else None

    def _take_opens(self) -> list[Opening]:
        opens, now = [], self._pace.now()
        for line in self._waiting:
            if not line.named and now >= line.ready_at:
                line.named, tag = True, next(self._tags) % 2**32
                self._asked[tag] = (line, None)
                opens.append(Opening(line.handle, tag, line.id))
        return opens

    def _take_round(self, max_bytes: int) -> list[tuple[Asked, int]]:
        """One record of each line that may send one, and its size."""
        now, size = self._pace.now(), 0
        taken: list[tuple[Asked, int]] = []
        for line in list(self._waiting):
            record = line.peek(now)
            if record is None:
                continue
            full = len(self._asked) >= MAX_RECORDS or self._bytes_under_way + record.size > MAX_BYTES
            if size >= max_bytes or (full and self._bytes_under_way):
                break
            size += record.size
            taken.append((self._take_record(line), record.size))
        return taken

    def _take_record(self, line: Line) -> Asked:
        record = line.take()
        del self._waiting[line]
        if line.queue:
            self._waiting[line] = None  # behind all others
        record.tag = next(self._tags) % 2**32
        self._asked[record.tag] = (line, record)
        self._bytes_under_way += record.size
        start = START if record.inputs is not None and record.step == 0 else 0
        return Asked(line.handle, record.tag, record.step, record.inputs, record.flags | start)

    # -- in ----------------------------------------------------------------------------------------------------------

    def _take(self, line: Line, record: Record | None, answer: Answer) -> None:
        if record is None:
            self._take_opened(line, answer)
            return
        self._bytes_under_way -= record.size
        error = None if answer.problem is None else from_problem(answer.problem)
        if error is not None and not (record.inputs is None and _was_deleted(record, error)):
            self._take_failure(line, record, error)
            return
        outcome = _outcome(line, record, answer)
        line.succeed(record)
        self._attempts = None
        record.settle(outcome)
        if record.inputs is None and not line.queue:
            self._forget(line)

    def _take_opened(self, line: Line, answer: Answer) -> None:
        if answer.problem is None:
            if line.position is None:
                line.position = answer.step or 0
            return
        error = from_problem(answer.problem)
        if self._is_held_back(line, error):
            line.named = False
            return
        self._waiting.pop(line, None)
        self._forget(line)
        while line.queue:
            line.queue.popleft().settle(error)

    def _take_failure(self, line: Line, record: Record, error: CarouselError) -> None:
        if not record.doomed and self._is_held_back(line, error):
            self._bytes_under_way += record.size  # as of all that falls back
            self._fall_back(line)
            return
        line.fail(record, error)
        if not line.queue:
            self._waiting.pop(line, None)

    def _is_held_back(self, line: Line, error: CarouselError) -> bool:
        """Is it to be asked again, later?"""
        if not self._pace.wants_again(error):
            return False
        line.attempts = line.attempts or Attempts(self._pace)
        try:
            line.ready_at = self._pace.now() + line.attempts.wait_after(error)
        except CarouselError:
            return False
        return True

    def _fall_back(self, line: Line) -> None:
        for record in line.fall_back():
            self._asked.pop(record.tag, None)
            self._bytes_under_way -= record.size
        if line.queue:
            self._waiting[line] = None

    def _forget(self, line: Line) -> None:
        """Its handle may be given to another."""
        self._lines.pop(line.id, None)
        self._free_handles.append(line.handle)


def closed() -> ConnectionFailed:
    """For what was not answered when the caller left."""
    return ConnectionFailed("The stream was closed before this was answered.")


def _outcome(line: Line, record: Record, answer: Answer) -> Outcome:
    if record.inputs is None:
        return None
    if answer.kind != STEPPED or answer.outputs is None or answer.step is None:
        raise UnexpectedAnswer(f"A step was answered by a record of kind {answer.kind}.")
    if record.moves and answer.step != record.step + record.moves:
        raise UnexpectedAnswer(f"{record.moves} steps from {record.step} on led to step {answer.step}.")
    return Stepped(line.id, answer.step, answer.outputs, answer.state, answer.replayed, None)


def _was_deleted(record: Record, error: CarouselError) -> bool:
    """By the same record, whose answer was lost."""
    return record.sent_before and isinstance(error, SequenceGone) and error.reason == "deleted"


def _failure_of(error: Exception) -> CarouselError:
    if isinstance(error, CarouselError):
        return error
    if isinstance(error, InvalidStatus):
        response = error.response
        headers = {name.lower(): value for name, value in response.headers.items()}
        return from_answer(response.status_code, bytes(response.body or b""), headers)
    close = error.rcvd if isinstance(error, ConnectionClosed) else None
    if close is not None and close.code == TOO_BIG:
        return TooLarge(f"A message was too long for the server: {close.reason}. Send fewer steps at once.")
    if close is not None and close.code in REFUSED:
        return UnexpectedAnswer(f"The server closed the stream with {close.code}: {close.reason}")
    return connection_failed(error)
