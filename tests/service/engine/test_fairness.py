"""Who goes first where not all can, over random loads: tenants share, jobs take turns, and nobody waits for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.scheduler import STREAMING_STEPS
from tests.service.engine.schedulers import ROWS, drain, request, run, scheduler_of

RUNGS = st.sampled_from(sorted(ROWS))
MOST_ROW_STEPS = max(rows * steps for steps, rows in ROWS.items())


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


@given(mine=RUNGS, theirs=RUNGS, late_by=st.integers(0, 12), hurried=st.booleans())
def test_tenants_share_the_steps_whatever_the_lengths_of_their_calls(
    mine: int, theirs: int, late_by: int, hurried: bool
):
    scheduler = scheduler_of()
    for slot in range(100):
        scheduler.add(request(slot, mine, tenant="a", deadline=0.5 if hurried else None))
    for _ in range(late_by):  # alone it has all, and owes nothing for it
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        run(scheduler, batch)
    for slot in range(100, 200):
        scheduler.add(request(slot, theirs, tenant="b"))
    waiting = {"a": 100 - late_by * ROWS[mine], "b": 100}
    served = {"a": 0, "b": 0}
    while all(waiting.values()):
        assert abs(served["a"] - served["b"]) <= 2 * MOST_ROW_STEPS
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        for item in batch.requests:
            served[item.tenant] += batch.steps
            waiting[item.tenant] -= 1
        run(scheduler, batch)


@given(loads=st.lists(st.tuples(RUNGS, st.booleans()), min_size=1, max_size=5), steps=RUNGS, after=st.integers(1, 9))
def test_a_tenant_with_one_call_does_not_wait_for_the_backlog_of_others(
    loads: list[tuple[int, bool]], steps: int, after: int
):
    scheduler = scheduler_of()
    for tenant, (length, hurried) in enumerate(loads):
        for slot in range(60):
            deadline = 0.5 if hurried else None
            scheduler.add(request(100 * tenant + slot, length, tenant=str(tenant), deadline=deadline))
    for _ in range(after):
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        run(scheduler, batch)
    light = request(9999, steps, tenant="light", at=1.0)
    scheduler.add(light)
    for _ in range(len(loads) + 1):
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        if light in batch.requests:
            return
        run(scheduler, batch)
    raise AssertionError("every other tenant had its turn, and it had none")


@given(theirs=RUNGS, mine=RUNGS)
def test_a_backlog_does_not_wait_for_one_who_sends_again_at_once(theirs: int, mine: int):
    scheduler = scheduler_of()
    for slot in range(200):
        scheduler.add(request(slot, theirs, tenant="heavy"))
    waited = 0
    for n in range(40):
        if 9999 not in scheduler._slots:
            scheduler.add(request(9999, mine, tenant="light", at=float(n)))
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        waited = 0 if any(item.tenant == "heavy" for item in batch.requests) else waited + 1
        assert waited <= 1 + MOST_ROW_STEPS // (mine * ROWS[mine])
        run(scheduler, batch)


def test_one_who_owes_nothing_more_is_served_by_deadline_again():
    scheduler = scheduler_of()
    for slot in range(4):
        scheduler.add(request(slot, 8, tenant="a"))
    drain(scheduler)
    scheduler.add(request(0, 8, tenant="a", deadline=0.1))
    scheduler.add(request(1, 1, tenant="b", deadline=0.2))
    assert [[item.tenant for item in batch.requests] for batch in drain(scheduler)] == [["a"], ["b"]]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(STREAMING_STEPS + 1, 80), min_size=2, max_size=8),
    streams=st.lists(st.integers(0, 6), min_size=1, max_size=8),
)
def test_no_job_waits_longer_than_one_round_whichever_came_first_and_whatever_streams_do(
    lengths: list[int], streams: list[int]
):
    scheduler = scheduler_of()
    for slot, length in enumerate(lengths):
        scheduler.add(request(slot, length, at=float(slot)))
    left, waited, ticks = dict(enumerate(lengths)), dict.fromkeys(range(len(lengths)), 0), 0
    while left:
        for slot in range(1000, 1000 + streams[ticks % len(streams)]):
            if slot not in scheduler._slots:
                scheduler.add(request(slot, 1, at=float(ticks)))
        batch = scheduler.next_batch(ticks * 1e-3)
        assert batch is not None
        ran = {item.slot for item in batch.requests}
        if ran <= left.keys():
            waited = {slot: 0 if slot in ran else waited[slot] + 1 for slot in left}
            left = {slot: steps - batch.steps * (slot in ran) for slot, steps in left.items()}
            left = {slot: steps for slot, steps in left.items() if steps}
        run(scheduler, batch)
        ticks += 1
        assert max(waited.values(), default=0) <= len(lengths)
        assert ticks < 60 * sum(lengths), "a job that waits for ever"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 3, 8, 13])), min_size=1, max_size=6))
def test_jobs_have_a_tenth_of_the_time_beside_any_streams_that_never_pause(arrivals: list[tuple[int, int]]):
    scheduler = scheduler_of()
    scheduler.add(request(0, 10**6))
    seconds = {"job": 0, "streams": 0}
    for n in range(300):
        rows, steps = arrivals[n % len(arrivals)]
        for slot in range(1 + 10 * n, 1 + 10 * n + rows):
            scheduler.add(request(slot, steps))
        batch = scheduler.next_batch(n * 1e-3)
        assert batch is not None
        seconds["job" if batch.requests[0].slot == 0 else "streams"] += batch.steps * len(batch.requests)
        run(scheduler, batch)
    assert seconds["job"] >= 0.1 * seconds["streams"] - MOST_ROW_STEPS


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
