"""The scheduler's invariants, over random interleavings of arrivals, runs, failures and withdrawals."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.engine.request import Batch, Request
from service.engine.scheduler import Scheduler

LADDER = {1: 4, 2: 4, 4: 3, 8: 2}


def request(slot: int, steps: int) -> Request:
    never: Any = asyncio.Future
    return Request(slot, np.zeros((steps, 1), np.float32), "all", False, True, None, 0.0, never)


def run(scheduler: Scheduler, batch: Batch) -> list[Request]:
    """Settle a batch as the engine does; the requests that it ended."""
    ended = []
    for item in batch.requests:
        item.steps_done += batch.steps
        if item.steps_left:
            scheduler.proceed(item)
        else:
            scheduler.finish(item)
            ended.append(item)
    return ended


def drain(scheduler: Scheduler) -> list[Batch]:
    batches = []
    while batch := scheduler.next_batch():
        batches.append(Batch(list(batch.requests), batch.steps))
        run(scheduler, batch)
    return batches


def test_thirteen_steps_run_as_eight_four_one():
    scheduler = Scheduler(LADDER)
    scheduler.add(request(0, 13))
    assert [batch.steps for batch in drain(scheduler)] == [8, 4, 1]


def test_rows_of_one_length_share_a_batch_up_to_the_ladders_bound():
    scheduler = Scheduler(LADDER)
    for slot in range(5):
        scheduler.add(request(slot, 4))
    assert [len(batch.requests) for batch in drain(scheduler)] == [3, 2]


def test_a_long_request_does_not_keep_short_ones_waiting():
    scheduler = Scheduler(LADDER)
    scheduler.add(request(0, 80))
    scheduler.add(request(1, 1))
    batches = drain(scheduler)
    assert [batch.requests[0].slot for batch in batches][:2] == [0, 1]


def test_whole_requests_are_never_cut():
    scheduler = Scheduler(LADDER, whole=True)
    for slot, length in enumerate([13, 13, 200]):
        scheduler.add(request(slot, length))
    assert [(batch.steps, len(batch.requests)) for batch in drain(scheduler)] == [(13, 1), (13, 1), (200, 1)]


def test_a_waiting_request_can_be_withdrawn_and_a_running_one_cannot():
    scheduler = Scheduler(LADDER)
    first, second, other = request(0, 8), request(0, 1), request(1, 8)
    for item in (first, second, other):
        scheduler.add(item)
    batch = scheduler.next_batch()
    assert batch is not None
    assert not scheduler.withdraw(first)
    assert scheduler.withdraw(second)
    assert run(scheduler, batch) == [first, other]
    assert scheduler.next_batch() is None
    assert scheduler.num_requests == 0


arrivals = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 40)), min_size=1, max_size=40)
actions = st.lists(st.sampled_from(["add", "run", "run", "withdraw", "fail"]), max_size=120)


@given(arrivals, actions, st.randoms(use_true_random=False))
def test_invariants(arrivals: list[tuple[int, int]], actions: list[str], random: Any):
    scheduler = Scheduler(LADDER)
    order: dict[int, list[Request]] = defaultdict(list)
    gone: set[Request] = set()
    ended: list[Request] = []
    queue = list(arrivals)

    def settle(batch: Batch, fail: bool) -> None:
        slots = [item.slot for item in batch.requests]
        assert len(set(slots)) == len(slots), "a slot twice in one batch"
        assert len(slots) <= LADDER[batch.steps]
        for item in batch.requests:
            assert item.steps_left >= batch.steps, "padding"
            assert not any(older not in gone for older in order[item.slot][: order[item.slot].index(item)]), "order"
        if fail:
            for item in batch.requests:
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
        elif action in ("run", "fail") and (batch := scheduler.next_batch()):
            settle(batch, action == "fail")
        elif action == "withdraw" and (waiting := [r for items in order.values() for r in items if r not in gone]):
            item = random.choice(waiting)
            assert scheduler.withdraw(item)
            gone.add(item)
    while batch := scheduler.next_batch():
        settle(batch, False)
    assert gone == {item for items in order.values() for item in items}, "every request ends"
    assert all(item.steps_left == 0 for item in ended)
    assert scheduler.num_requests == 0


@given(st.lists(st.integers(1, 100), min_size=2, max_size=30))
def test_no_row_waits_longer_than_one_round(lengths: list[int]):
    scheduler = Scheduler(LADDER)
    for slot, length in enumerate(lengths):
        scheduler.add(request(slot, length))
    waited = dict.fromkeys(range(len(lengths)), 0)
    left = dict(enumerate(lengths))
    while batch := scheduler.next_batch():
        ran = {item.slot for item in batch.requests}
        for slot in list(left):
            waited[slot] = 0 if slot in ran else waited[slot] + 1
        for slot in ran:
            left[slot] -= batch.steps
            if not left[slot]:
                del left[slot], waited[slot]
        assert max(waited.values(), default=0) <= len(lengths)
        run(scheduler, batch)
