"""The scheduler's invariants, over random interleavings of arrivals, runs, failures and withdrawals."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.lane import Ladder
from service.engine.request import Batch, Request, nobody
from service.engine.scheduler import STREAMING_STEPS, Scheduler

ROWS = {1: 4, 2: 4, 4: 3, 8: 2}
SHORT = {1: 2, 2: 1}


def scheduler_of(*, whole: bool = False, seconds: float = 1e-6) -> Scheduler:
    """`seconds` is what a step of a row costs."""
    return Scheduler(Ladder(ROWS, whole=whole), Ladder(SHORT, whole=whole), lambda rows, steps: rows * steps * seconds)


def request(slot: int, steps: int, *, deadline: float | None = None, tenant: str = "", at: float = 0.0) -> Request:
    return Request(slot, np.zeros((steps, 1), np.float32), at, nobody, deadline=deadline, tenant=tenant)


def run(scheduler: Scheduler, batch: Batch) -> list[Request]:
    """Settle a batch as the engine does; the requests that it ended."""
    ended = []
    for item in batch.requests:
        item.steps_done += batch.steps
        if item.steps_left:
            scheduler.proceed(item)
        else:
            scheduler.finish(item)
            ended.extend(item.members or [item])
    return ended


def drain(scheduler: Scheduler) -> list[Batch]:
    batches = []
    while batch := scheduler.next_batch(0.0):
        batches.append(Batch(list(batch.requests), batch.steps))
        run(scheduler, batch)
    return batches


def test_thirteen_steps_run_as_eight_four_one():
    scheduler = scheduler_of()
    scheduler.add(request(0, 13))
    assert [batch.steps for batch in drain(scheduler)] == [8, 4, 1]


def test_rows_of_one_length_share_a_batch_up_to_the_ladders_bound():
    scheduler = scheduler_of()
    for slot in range(5):
        scheduler.add(request(slot, 4))
    assert [len(batch.requests) for batch in drain(scheduler)] == [3, 2]


def test_streams_go_first_and_a_long_job_fills_the_rest_in_short_runs():
    scheduler = scheduler_of()
    scheduler.add(request(0, 80))
    scheduler.add(request(1, 1))
    first, second = scheduler.next_batch(0.0), scheduler.next_batch(0.0)
    assert first is not None
    assert second is not None
    assert [r.slot for r in first.requests] == [1]
    assert ([r.slot for r in second.requests], second.steps) == ([0], 2), "beside streams its runs are short"
    run(scheduler, second)
    later = scheduler.next_batch(60.0)
    assert later is not None
    assert later.steps == 8, "with no stream about it runs at full length"


def test_the_earliest_due_goes_first():
    scheduler = scheduler_of()
    for slot, deadline in enumerate([9.0, None, 0.5, 3.0, 0.1]):
        scheduler.add(request(slot, 8, deadline=deadline))
    assert [[r.slot for r in batch.requests] for batch in drain(scheduler)] == [[4, 2], [1, 3], [0]]


def test_a_job_gets_its_share_while_streams_never_pause():
    scheduler = scheduler_of()
    scheduler.add(request(0, 100_000))
    seconds = {"job": 0, "streams": 0}
    for n in range(3000):
        while len(scheduler._streaming._heaps) < 1:
            for slot in range(1, 5):
                scheduler.add(request(slot, 1))
        batch = scheduler.next_batch(n * 1e-3)
        assert batch is not None
        kind = "job" if batch.requests[0].slot == 0 else "streams"
        seconds[kind] += batch.steps * len(batch.requests)
        run(scheduler, batch)
    assert 0.09 <= seconds["job"] / seconds["streams"] <= 0.11


@given(st.integers(1, 30), st.integers(1, 30))
def test_tenants_share_evenly_however_much_each_sends(mine: int, theirs: int):
    scheduler = scheduler_of()
    for slot in range(mine):
        scheduler.add(request(slot, 1, tenant="a"))
    for slot in range(theirs):
        scheduler.add(request(100 + slot, 1, tenant="b"))
    left, served = {"a": mine, "b": theirs}, {"a": 0, "b": 0}
    for batch in drain(scheduler):
        for item in batch.requests:
            left[item.tenant] -= 1
            served[item.tenant] += 1
        if all(left.values()):
            assert abs(served["a"] - served["b"]) <= 1


def test_the_queue_is_counted_in_seconds():
    scheduler = scheduler_of(seconds=1e-3)
    for slot in range(3):
        scheduler.add(request(slot, 13))
    scheduler.add(request(9, 1000))
    assert scheduler.backlog(steps=1) == (3, pytest.approx(39e-3)), "a stream does not wait for jobs"
    assert scheduler.backlog(steps=1000) == (1, pytest.approx(1.0))
    drain(scheduler)
    assert scheduler.backlog(steps=1) == scheduler.backlog(steps=1000) == (0, 0)


def test_whole_requests_are_never_cut():
    scheduler = scheduler_of(whole=True)
    for slot, length in enumerate([13, 13, 200]):
        scheduler.add(request(slot, length))
    assert [(batch.steps, len(batch.requests)) for batch in drain(scheduler)] == [(13, 1), (13, 1), (200, 1)]


def test_a_waiting_request_can_be_withdrawn_and_a_running_one_cannot():
    scheduler = scheduler_of()
    first, second, other = request(0, 8), request(0, 1), request(1, 8)
    for item in (first, second, other):
        scheduler.add(item)
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    assert not scheduler.withdraw(first)
    assert scheduler.withdraw(second)
    assert run(scheduler, batch) == [first, other]
    assert scheduler.next_batch(0.0) is None
    assert scheduler.num_requests == 0


arrivals = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 40)), min_size=1, max_size=40)
actions = st.lists(st.sampled_from(["add", "run", "run", "withdraw", "fail"]), max_size=120)


@given(arrivals, actions, st.randoms(use_true_random=False))
def test_invariants(arrivals: list[tuple[int, int]], actions: list[str], random: Any):
    scheduler = scheduler_of()
    order: dict[int, list[Request]] = defaultdict(list)
    gone: set[Request] = set()
    ended: list[Request] = []
    queue = list(arrivals)

    def settle(batch: Batch, fail: bool) -> None:
        slots = [item.slot for item in batch.requests]
        assert len(set(slots)) == len(slots), "a slot twice in one batch"
        assert len(slots) <= ROWS[batch.steps]
        for item in batch.requests:
            assert item.steps_left >= batch.steps, "padding"
            first = item.members[0] if item.members else item
            assert not any(older not in gone for older in order[item.slot][: order[item.slot].index(first)]), "order"
        if fail:
            for item in batch.requests:
                if item.members:
                    scheduler.split(item)
                else:
                    scheduler.finish(item)
                    gone.add(item)
        else:
            gone.update(done := run(scheduler, batch))
            ended.extend(done)

    for action in actions:
        if action == "add" and queue:
            item = request(*queue.pop())
            order[item.slot].append(item)
            scheduler.add(item)
        elif action in ("run", "fail") and (batch := scheduler.next_batch(0.0)):
            settle(batch, action == "fail")
        elif action == "withdraw" and (waiting := [r for items in order.values() for r in items if r not in gone]):
            item = random.choice(waiting)
            assert scheduler.withdraw(item)
            gone.add(item)
    while batch := scheduler.next_batch(0.0):
        settle(batch, False)
    assert gone == {item for items in order.values() for item in items}, "every request ends"
    assert len(set(ended)) == len(ended), "no request ends twice"
    assert scheduler.num_requests == 0


@given(st.lists(st.integers(STREAMING_STEPS + 1, 200), min_size=2, max_size=30))
def test_no_job_waits_longer_than_one_round(lengths: list[int]):
    scheduler = scheduler_of()
    for slot, length in enumerate(lengths):
        scheduler.add(request(slot, length))
    waited = dict.fromkeys(range(len(lengths)), 0)
    left = dict(enumerate(lengths))
    while batch := scheduler.next_batch(0.0):
        ran = {item.slot for item in batch.requests}
        for slot in list(left):
            waited[slot] = 0 if slot in ran else waited[slot] + 1
        for slot in ran:
            left[slot] -= batch.steps
            if not left[slot]:
                del left[slot], waited[slot]
        assert max(waited.values(), default=0) <= len(lengths)
        run(scheduler, batch)
