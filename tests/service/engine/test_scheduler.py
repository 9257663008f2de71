"""The scheduler's invariants, over random interleavings of arrivals, runs, failures and withdrawals."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.request import Batch, Request
from tests.service.engine.schedulers import ROWS, drain, request, run, scheduler_of


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


def test_the_queue_is_counted_in_seconds():
    scheduler = scheduler_of(seconds=1e-3)
    waiting = [request(slot, 13) for slot in range(3)]
    for item in (*waiting, request(9, 1000)):
        scheduler.add(item)
    assert scheduler.backlog(steps=1) == (3, pytest.approx(39e-3)), "a stream does not wait for jobs"
    assert scheduler.backlog(steps=1000) == (1, pytest.approx(1.0))
    scheduler.withdraw(waiting[0])
    assert scheduler.backlog(steps=1) == (2, pytest.approx(26e-3))
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


arrivals = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9) | st.integers(1, 40)), min_size=10, max_size=40)
actions = st.lists(
    st.sampled_from(["add", "add", "add", "take", "take", "settle", "settle", "fail", "withdraw"]),
    min_size=20,
    max_size=100,
)


@settings(max_examples=150, deadline=None)
@given(arrivals, actions, st.randoms(use_true_random=False))
def test_invariants(arrivals: list[tuple[int, int]], actions: list[str], random: Any):
    """Batches may stay out while others are taken, as rows do whose end waits for its commit."""
    scheduler = scheduler_of()
    order: dict[int, list[Request]] = defaultdict(list)
    gone: set[Request] = set()
    ended: list[Request] = []
    queue = list(arrivals)
    out: list[Batch] = []

    def take() -> None:
        batch = scheduler.next_batch(0.0)
        if batch is None:
            return
        slots = [item.slot for item in batch.requests]
        assert len(set(slots)) == len(slots), "a slot twice in one batch"
        assert not {item.slot for other in out for item in other.requests} & set(slots), "a slot that is running"
        assert len(slots) <= ROWS[batch.steps]
        for item in batch.requests:
            assert item.steps_left >= batch.steps, "padding"
            first = item.members[0] if item.members else item
            assert not any(older not in gone for older in order[item.slot][: order[item.slot].index(first)]), "order"
        out.append(batch)

    def settle(batch: Batch, fail: bool) -> None:
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

    def withdraw(item: Request) -> None:
        mine = [other for batch in out for other in batch.requests if other.slot == item.slot]
        running = any(item is other or item in other.members for other in mine)
        begun = any(item in other.members and other.steps_done for other in scheduler._slots[item.slot])
        withdrawn = scheduler.withdraw(item)
        assert withdrawn != (running or begun)
        if withdrawn:
            gone.add(item)

    for action in actions:
        if action == "add" and queue:
            item = request(*queue.pop())
            order[item.slot].append(item)
            scheduler.add(item)
        elif action == "take":
            take()
        elif action in ("settle", "fail") and out:
            settle(out.pop(random.randrange(len(out))), action == "fail")
        elif action == "withdraw" and (waiting := [r for items in order.values() for r in items if r not in gone]):
            withdraw(random.choice(waiting))
    while take() or out:
        settle(out.pop(0), False)
    assert gone == {item for items in order.values() for item in items}, "every request ends"
    assert len(set(ended)) == len(ended), "no request ends twice"
    assert scheduler.num_requests == 0
