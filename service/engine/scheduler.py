"""Who runs now, and how many steps. Pure: no clock, no arrays, no I/O; times come in as arguments.

A row runs only chunks of 1, 2, 4, ... steps, the largest that it has waiting, so nothing is ever padded: 13 steps are
8 + 4 + 1. Rows with the same chunk length run together, and the row that has waited longest says which length is next,
so no row starves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from service.engine.request import Batch, Request


class Scheduler:
    """Holds the requests that wait. Those of one slot run one after the other, in the order of arrival."""

    def __init__(self, ladder: Mapping[int, int], *, whole: bool = False) -> None:
        """`ladder`: chunk length -> most rows. `whole`: requests run in one piece, for models that cannot be cut."""
        self._ladder = dict(sorted(ladder.items(), reverse=True))
        self._row_steps = max(steps * rows for steps, rows in ladder.items())
        self._whole = whole
        self._slots: dict[int, deque[Request]] = {}  # the first of each is ready or running
        self._ready: dict[int, deque[tuple[int, Request]]] = {}  # chunk length -> (turn, request)
        self._running: set[int] = set()
        self._turn = 0
        self.num_requests = 0

    def add(self, request: Request) -> None:
        queue = self._slots.setdefault(request.slot, deque())
        queue.append(request)
        self.num_requests += 1
        if len(queue) == 1:
            self._make_ready(request)

    def next_batch(self) -> Batch | None:
        """Take the next rows to run, or None. Each must come back through `proceed` or `finish`."""
        steps = min((queue[0][0], steps) for steps, queue in self._ready.items())[1] if self._ready else 0
        if not steps:
            return None
        queue = self._ready[steps]
        count = min(len(queue), self._max_rows(steps))
        requests = [queue.popleft()[1] for _ in range(count)]
        if not queue:
            del self._ready[steps]
        self._running.update(request.slot for request in requests)
        return Batch(requests, steps)

    def proceed(self, request: Request) -> None:
        """The request ran a chunk and has steps left: it waits for its next turn."""
        self._running.remove(request.slot)
        self._make_ready(request)

    def finish(self, request: Request) -> None:
        """The request is over, run or failed: the next one of its slot becomes ready."""
        self._running.discard(request.slot)
        queue = self._slots[request.slot]
        assert queue[0] is request, "a slot's requests finish in order"
        queue.popleft()
        self.num_requests -= 1
        if queue:
            self._make_ready(queue[0])
        else:
            del self._slots[request.slot]

    def withdraw(self, request: Request) -> bool:
        """Take back a request that is not running just now. False: it is running, and comes back by itself."""
        queue = self._slots.get(request.slot, deque())
        if request not in queue:
            return False
        if queue[0] is not request:
            queue.remove(request)
            self.num_requests -= 1
            return True
        if self.is_running(request):
            return False
        self._forget_ready(request)
        self.finish(request)
        return True

    def is_running(self, request: Request) -> bool:
        """Does a chunk of it run just now?"""
        return request.slot in self._running and self._slots[request.slot][0] is request

    def _make_ready(self, request: Request) -> None:
        self._turn += 1
        self._ready.setdefault(self._chunk(request.steps_left), deque()).append((self._turn, request))

    def _forget_ready(self, request: Request) -> None:
        steps = self._chunk(request.steps_left)
        rest = deque(entry for entry in self._ready[steps] if entry[1] is not request)
        if rest:
            self._ready[steps] = rest
        else:
            del self._ready[steps]

    def _chunk(self, steps_left: int) -> int:
        if self._whole:
            return steps_left
        return next(steps for steps in self._ladder if steps <= steps_left)

    def _max_rows(self, steps: int) -> int:
        return max(1, self._row_steps // steps) if self._whole else self._ladder[steps]
