"""The records of one sequence on a stream: what waits, what is under way, and which step each of them begins at."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from carousel_client.core.arrays import Array
from carousel_client.core.frames import SCORE
from carousel_client.core.results import Stepped
from carousel_client.core.retries import Attempts
from carousel_client.errors import CarouselError, OutOfTurn

MAX_AHEAD = 16
"""Records of one sequence that are under way at once: so many answers the server keeps, to give them again."""

Outcome = Stepped | CarouselError | None
"""None: deleted."""


@dataclass(slots=True, eq=False)
class Record:
    """`settle` hears the outcome, once. Without inputs it ends the sequence."""

    settle: Callable[[Outcome], None]
    inputs: Array | None
    flags: int
    size: int
    step: int = 0
    tag: int = 0
    doomed: bool = False
    """One before it failed, so it will, too."""
    sent_before: bool = False

    @property
    def moves(self) -> int:
        """Steps that the sequence goes on by."""
        return 0 if self.inputs is None or self.flags & SCORE else len(self.inputs)


class Line:
    """`position` is where the sequence stands for certain; None until the server has told."""

    def __init__(self, id: str, handle: int) -> None:
        self.id, self.handle = id, handle
        self.position: int | None = None
        self.named = False
        """Does the server know the handle, on this connection?"""
        self.queue: deque[Record] = deque()
        self.sent: deque[Record] = deque()
        self.ready_at = 0.0
        self.attempts: Attempts | None = None
        self._next = 0

    def peek(self, now: float) -> Record | None:
        """What may be sent now.

        What does not move the sequence is not followed by anything until it is answered, and its end waits for all
        before it: sent again after a lost connection, they would find it elsewhere.
        """
        if not self.queue or self.position is None or now < self.ready_at or len(self.sent) >= MAX_AHEAD:
            return None
        if self.sent and (not self.sent[-1].moves or self.queue[0].inputs is None):
            return None
        return self.queue[0]

    def take(self) -> Record:
        """What `peek` showed, numbered, is under way from now on."""
        assert self.position is not None, "it was peeked at"
        record = self.queue.popleft()
        if all(other.doomed for other in self.sent):
            self._next = self.position
        record.step = self._next
        self._next += record.moves
        self.sent.append(record)
        return record

    def succeed(self, record: Record) -> None:
        assert self.sent[0] is record, "answers come in order"
        self.sent.popleft()
        self.position = 0 if record.inputs is None else record.step + record.moves
        self.attempts = None

    def fail(self, record: Record, error: CarouselError) -> None:
        """What came after it in the same life of the sequence is not to be run either."""
        assert self.sent[0] is record, "answers come in order"
        self.sent.popleft()
        record.settle(_out_of_turn() if record.doomed else error)
        if record.moves and not record.doomed:
            for later in self.sent:
                later.doomed = True
            while self.queue and self.queue[0].inputs is not None:
                self.queue.popleft().settle(_out_of_turn())

    def fall_back(self) -> list[Record]:
        """All that is under way is to be sent again; these records."""
        back = list(self.sent)
        self.sent.clear()
        for record in reversed(back):
            record.sent_before = True
            if record.doomed:
                record.settle(_out_of_turn())
            else:
                self.queue.appendleft(record)
        return back


def _out_of_turn() -> OutOfTurn:
    return OutOfTurn("A step before this one failed, so this one was not run.")
