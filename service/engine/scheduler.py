"""Who runs now, and how many steps. Pure: no clock, no arrays, no I/O; times come in as arguments.

A row runs only chunks of 1, 2, 4, ... steps, the longest that it has waiting, so nothing is ever padded: 13 steps are
8 + 4 + 1. Streaming rows, those with few steps, go first and together; offline rows, long sequences and jobs, fill what
time is left in runs that are kept short while streams are about, and are sure of a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from service.engine.coalescing import join, split
from service.engine.lane import Ladder, Lane
from service.engine.request import Batch, Request

STREAMING_STEPS = 32
"""A request of more steps is offline work."""

MOST_REMEMBERED_STEPS = 1024
"""The costs of longer requests are computed each time."""

OFFLINE_SHARE = 0.1
"""Of the time that streaming rows take, what offline rows get even if streams never pause."""

QUIET_SECONDS = 0.1
"""Streams are about for so long after the last one ran."""


class Scheduler:
    """Holds the requests that wait. Those of one slot run one after the other, in the order of arrival."""

    def __init__(self, ladder: Ladder, beside_streams: Ladder, predict: Callable[[int, int], float]) -> None:
        """`beside_streams`: the ladder of offline rows while streams are about; `predict(rows, steps)` in seconds."""
        self._ladder = ladder
        self._beside_streams = beside_streams
        self._predict = predict
        self._costs: dict[int, tuple[Lane, int, float]] = {}
        """Steps -> where they wait, the chunk that they begin with, and what they add to the queue."""
        self._slots: dict[int, list[Request]] = {}  # the first of each is ready or running
        self._streaming, self._offline = Lane(by_due=True), Lane(by_due=False)
        self._owed_seconds = 0.0  # to offline rows
        self._last_streaming = float("-inf")

    @property
    def num_requests(self) -> int:
        """Of all that wait or run."""
        return self._streaming.num_requests + self._offline.num_requests

    def backlog(self, steps: int) -> tuple[int, float]:
        """(requests, seconds at full batches) that a request of `steps` steps would find in its own lane."""
        lane = self._lane(steps)
        return lane.num_requests, lane.seconds

    def add(self, request: Request) -> None:
        steps = len(request.inputs)
        lane, chunk, request.cost_seconds = self._costs.get(steps) or self._look_at(steps)
        lane.num_requests += 1
        lane.seconds += request.cost_seconds
        queue = self._slots.get(request.slot)
        if queue:
            queue.append(request)
        else:
            self._slots[request.slot] = [request]
            lane.push(request, chunk)

    def _look_at(self, steps: int) -> tuple[Lane, int, float]:
        """The cost in seconds is its part of full batches, as predicted at the first request of so many steps."""
        chunk = self._ladder.rung(steps)
        rows = self._ladder.max_rows(chunk)
        cost = self._lane(steps), chunk, self._predict(rows, chunk) / (rows * chunk) * steps
        if steps <= MOST_REMEMBERED_STEPS:
            self._costs[steps] = cost
        return cost

    def next_batch(self, now: float) -> Batch | None:
        """Take the next rows to run, or None. Each must come back through `proceed` or `finish`."""
        if self._streaming and not (self._offline and self._offline_is_owed(now)):
            batch = self._streaming.take(self._ladder)
            self._last_streaming = now
            if self._offline:
                self._owed_seconds += OFFLINE_SHARE * self._predict(len(batch.requests), batch.steps)
        elif self._offline:
            batch = self._offline.take(self._offline_ladder(now))
            self._owed_seconds = max(0.0, self._owed_seconds - self._predict(len(batch.requests), batch.steps))
        else:
            return None
        for request in batch.requests:
            request.running = True
        return batch

    def refit(self, ladder: Mapping[int, int], beside_streams: Mapping[int, int]) -> None:
        """What runs cost is known better by now: rows that may run together, by chunk length."""
        self._ladder.refit(ladder)
        self._beside_streams.refit(beside_streams)
        self._costs.clear()

    def note_stream(self, now: float) -> None:
        """Streaming rows run that are not of the scheduler: offline runs are to be short meanwhile."""
        self._last_streaming = now

    def proceed(self, request: Request) -> None:
        """The request ran a chunk and has steps left: it waits for its next turn."""
        request.running = False
        self._make_ready(request)

    def finish(self, request: Request) -> None:
        """The request is over, run or failed: the next one of its slot becomes ready."""
        request.running = False
        queue = self._slots[request.slot]
        assert queue[0] is request, "a slot's requests finish in order"
        for member in request.members or (request,):
            self._lane(len(member.inputs)).uncount(member)
        if len(queue) == 1:
            del self._slots[request.slot]
        else:
            del queue[0]
            self._make_ready(join(queue, STREAMING_STEPS) if len(queue) > 1 else queue[0])

    def split(self, joined: Request) -> None:
        """The joined request failed: its members run one by one."""
        joined.running = False
        queue = self._slots[joined.slot]
        split(queue)
        self._make_ready(queue[0])

    def withdraw(self, request: Request) -> bool:
        """Take back a request that is not running just now. False: it comes back by itself.

        It does when it runs, or when others that run as one with it have begun: the row is theirs until it is put back.
        """
        queue = self._slots.get(request.slot, [])
        if queue and request in queue[0].members:
            first = queue[0]
            if first.steps_done or first.running:
                first.gone = True
                return False
            self._take_back(first)
            self.split(first)
        if request not in queue or request.running:
            return False
        if queue[0] is request:
            self._take_back(request)
            self.finish(request)
        else:
            queue.remove(request)
            self._lane(len(request.inputs)).uncount(request)
        return True

    def drain(self) -> list[Request]:
        """Give up all that waits or runs, for an engine that has stopped."""
        held = [request for queue in self._slots.values() for request in queue]
        self._slots.clear()
        self._streaming, self._offline = Lane(by_due=True), Lane(by_due=False)
        self._costs.clear()
        return held

    def _make_ready(self, request: Request) -> None:
        self._lane(len(request.inputs)).push(request, self._ladder.rung(request.steps_left))

    def _take_back(self, request: Request) -> None:
        self._lane(len(request.inputs)).remove(request, self._ladder.rung(request.steps_left))

    def _lane(self, steps: int) -> Lane:
        """Of requests of so many steps."""
        return self._streaming if steps <= STREAMING_STEPS else self._offline

    def _offline_is_owed(self, now: float) -> bool:
        return self._owed_seconds >= self._predict(*self._offline.peek(self._offline_ladder(now)))

    def _offline_ladder(self, now: float) -> Ladder:
        return self._beside_streams if now - self._last_streaming < QUIET_SECONDS else self._ladder
