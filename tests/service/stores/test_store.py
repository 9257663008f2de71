"""What every store promises."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.stores.store import (
    TOMBSTONE_SECONDS,
    Begin,
    End,
    Forget,
    Key,
    Replace,
    Store,
    Tombstone,
    Touch,
    new_revision,
)
from tests.service.stores.records import KEY, NOW, TTL, advance, advanced, record

pytestmark = pytest.mark.anyio


def key(name: str, tenant: str = "acme", model: str = "pump") -> Key:
    return tenant, model, name


async def test_a_record_comes_back_as_it_was_put(store: Store):
    put = record(state=bytes(range(256)) * 40, answers=[b"", b"\x00\xff" * 700, b"last"], step=2**52)
    assert await store.commit([Begin(put)]) == [True]
    assert await store.read(KEY, NOW) == put


@pytest.mark.parametrize("size", [0, 1, 900, 4000, 4100, 70_000])
async def test_a_state_may_have_any_size(store: Store, size: int):
    put = record(state=b"\xa5" * size, answers=[b"\x5a" * size])
    step = advance(put, b"\x55" * size, state=b"\xaa" * size)
    assert await store.commit([Begin(put), step]) == [True, True]
    assert await store.read(KEY, NOW) == advanced(put, step)


async def test_what_never_was_is_nothing(store: Store):
    changes = [advance(record()), Replace(record(revision=7), 1000), Touch(KEY, 1000, NOW), Forget(KEY, 1000)]
    assert await store.commit([*changes, End(KEY, "deleted", NOW, 1000)]) == [False] * 5
    assert await store.read(KEY, NOW) is None
    assert await store.commit([]) == []


async def test_an_advance_takes_place_where_it_was_made_for_only(store: Store):
    put = record()
    first, late = advance(put), advance(put, b"another answer", state=b"another state")
    assert await store.commit([Begin(put), first, late]) == [True, True, False]
    assert await store.commit([late]) == [False]
    assert await store.read(KEY, NOW) == advanced(put, first)


async def test_the_changes_of_a_commit_stand_or_fall_by_themselves(store: Store):
    names = [f"p-{n}" for n in range(300)]
    puts = [record(key(name), n * 10) for n, name in enumerate(names)]
    assert await store.commit([Begin(put) for put in puts]) == [True] * 300
    steps = [advance(put) if n % 3 else advance(replace(put, revision=5)) for n, put in enumerate(puts)]
    assert await store.commit(steps) == [n % 3 > 0 for n in range(300)]
    for n, put in enumerate(puts):
        assert await store.read(put.key, NOW) == (advanced(put, steps[n]) if n % 3 else put)


async def test_the_last_sixteen_answers_are_kept_in_order(store: Store):
    standing = record()
    await store.commit([Begin(standing)])
    for n in range(40):
        step = advance(standing, None if n % 5 == 4 else b"answer %d" % n)
        assert await store.commit([step]) == [True]
        standing = advanced(standing, step)
        assert await store.read(KEY, NOW) == standing
    assert len(standing.answers) == 16


async def test_a_full_ring_that_was_put_goes_on_at_its_oldest(store: Store):
    standing = record(answers=[b"%d" % n for n in range(16)])
    step = advance(standing)
    assert await store.commit([Begin(standing), step]) == [True, True]
    assert await store.read(KEY, NOW) == advanced(standing, step)


async def test_repeating_a_commit_is_harmless_and_counts_as_applied(store: Store):
    put, other = record(), record(key("other"))
    step = advance(put)
    standing = advanced(put, step)
    new = record(revision=77, answers=[b"kept"])
    for changes in (
        [Begin(put)],
        [step, Begin(other)],
        [Touch(KEY, standing.revision, NOW + 5)],
        [Replace(new, standing.revision)],
        [End(KEY, "deleted", NOW + 6, 77), End(other.key, "expired", NOW + 7)],
    ):
        assert await store.commit(changes) == [True] * len(changes)
        before = await store.read(KEY, NOW + 8), await store.read(other.key, NOW + 8)
        assert await store.commit(changes) == [True] * len(changes)
        assert (await store.read(KEY, NOW + 8), await store.read(other.key, NOW + 8)) == before


async def test_a_call_computed_anew_is_its_own_repeat_at_a_later_time(store: Store):
    put = record()
    step = advance(put)
    assert await store.commit([Begin(put), step]) == [True, True]
    assert await store.commit([replace(step, last_used_at=step.last_used_at + 3)]) == [True]
    assert await store.commit([replace(step, answer=b"of other inputs")]) == [False]
    assert await store.commit([replace(step, state=b"of other inputs")]) == [False]
    assert await store.commit([replace(step, step=9)]) == [False]


async def test_an_id_that_is_taken_stays_what_it_is(store: Store):
    put = record()
    assert await store.commit([Begin(put), Begin(record(revision=5))]) == [True, False]
    assert await store.read(KEY, NOW) == put


async def test_an_id_is_free_again_once_its_lease_is_over_or_it_ended(store: Store):
    put = record(answers=[b"of the past"])
    later = record(revision=5, created_at=NOW + TTL, last_used_at=NOW + TTL)
    assert await store.commit([Begin(put), Begin(replace(later, created_at=NOW + TTL - 0.5))]) == [True, False]
    assert await store.commit([Begin(later), advance(put)]) == [True, False]
    assert await store.read(KEY, NOW + TTL) == later
    await store.commit([End(KEY, "deleted", NOW + TTL, 5), Begin(put)])
    assert await store.read(KEY, NOW) == put


async def test_a_replaced_record_has_nothing_of_the_one_before(store: Store):
    put = record(answers=[b"%d" % n for n in range(16)])
    new = record(revision=new_revision(), state=b"put", step=9, answers=[b"new"], version=4, ttl_seconds=7.0)
    assert await store.commit([Begin(put), Replace(new, 999), Replace(new, put.revision)]) == [True, False, True]
    assert await store.read(KEY, NOW) == new
    step = advance(new)
    assert await store.commit([advance(put), step]) == [False, True]
    assert await store.read(KEY, NOW) == advanced(new, step)


async def test_a_touch_renews_the_lease_and_nothing_else(store: Store):
    put = record()
    await store.commit([Begin(put)])
    assert await store.commit([Touch(KEY, put.revision, NOW + 90), Touch(KEY, 5, NOW + 500)]) == [True, False]
    assert await store.read(KEY, NOW + TTL + 50) == replace(put, last_used_at=NOW + 90)
    step = advance(put)
    assert await store.commit([step]) == [True]


@pytest.mark.parametrize("reason", ["deleted", "version_unloaded", "damaged", "expired"])
async def test_an_ended_sequence_is_known_for_an_hour(store: Store, reason: str):
    put = record()
    await store.commit([Begin(put)])
    ends = [End(KEY, reason, NOW + 1, 5), End(KEY, reason, NOW + 1, put.revision)]
    assert await store.commit([*ends, advance(put)]) == [False, True, False]
    assert await store.read(KEY, NOW + TOMBSTONE_SECONDS) == Tombstone(reason, NOW + 1)
    assert await store.read(KEY, NOW + 1 + TOMBSTONE_SECONDS) is None


async def test_what_is_held_elsewhere_leaves_its_tombstone_too(store: Store):
    assert await store.commit([End(KEY, "deleted", NOW)]) == [True]
    assert await store.read(KEY, NOW) == Tombstone("deleted", NOW)
    assert await store.commit([End(KEY, "expired", NOW + 1)]) == [True]
    assert await store.read(KEY, NOW + 1) == Tombstone("expired", NOW + 1)


async def test_a_forgotten_record_leaves_no_trace(store: Store):
    put = record()
    assert await store.commit([Begin(put), Forget(KEY, 5), Forget(KEY, put.revision)]) == [True, False, True]
    assert await store.read(KEY, NOW) is None
    assert await store.list("acme", "pump", after="", most=10, now=NOW) == []
    assert await store.commit([Begin(record(revision=6))]) == [True]


async def test_a_lease_that_is_over_reads_as_expired(store: Store):
    await store.commit([Begin(record())])
    assert await store.read(KEY, NOW + TTL) == Tombstone("expired", NOW + TTL)
    assert await store.read(KEY, NOW + TTL + TOMBSTONE_SECONDS) is None


async def test_a_page_has_the_tenants_own_live_sequences_by_id(store: Store):
    ids = ["a", "B", "a.", "a-", "~", "0", "z" * 128, "é", "zero\x00byte", "zero", "zero\x00", "\x00", "\xff"]
    await store.commit([Begin(record(key(name))) for name in ids])
    others = [key("a", "acme2"), key("a", "acm"), key("x", model="pump2"), key("x", model="pum"), ("", "pump", "q")]
    await store.commit([Begin(record(other)) for other in others])
    await store.commit([Begin(record(key("over"), ttl_seconds=1.0)), Begin(record(key("dead")))])
    await store.commit([End(key("dead"), "deleted", NOW)])
    seen: list[str] = []
    while page := await store.list("acme", "pump", after=seen[-1] if seen else "", most=4, now=NOW + 2):
        seen += [found.key[2] for found in page]
        assert all(found.key[:2] == ("acme", "pump") for found in page)
    assert seen == sorted(ids)
    assert [found.key for found in await store.list("", "pump", after="", most=9, now=NOW)] == [("", "pump", "q")]
    (first,) = await store.list("acme", "pump", after="0", most=1, now=NOW)
    assert (first.revision, first.version, first.step, first.expires_at) == (1000, 3, 0, NOW + TTL)


async def test_any_bytes_may_stand_in_names(store: Store):
    names = [("a\x00b", "c", "d"), ("a", "b\x00c", "d"), ("a", "b", "c\x00d"), ("a:b", "c", "d"), ("a", "b:c", "d")]
    puts = [record(name, n) for n, name in enumerate(names)]
    assert await store.commit([Begin(put) for put in puts]) == [True] * len(puts)
    assert [await store.read(put.key, NOW) for put in puts] == puts


async def test_sequences_are_counted_by_model(store: Store):
    await store.commit([Begin(record(key(f"{n}", tenant=f"t{n % 2}"), n)) for n in range(6)])
    await store.commit([Begin(record(key("x", model="other"))), End(key("0", "t0"), "deleted", NOW, 0)])
    assert (await store.count("pump"), await store.count("other"), await store.count("none")) == (5, 1, 0)


async def test_leases_end_by_themselves_in_portions(store: Store):
    await store.commit([Begin(record(key(f"p-{n}"), n, ttl_seconds=10.0 + n % 2)) for n in range(20)])
    await store.commit([Touch(key("p-0"), 0, NOW + 10), Touch(key("p-1"), 1, NOW + 10)])
    ended: list[Key] = []
    for _ in range(40):
        portion = await store.expire(NOW + 11, 3)
        assert len(portion) <= 3
        ended += portion
    over = {key(f"p-{n}") for n in range(2, 20)}
    assert len(ended) == len(set(ended))
    assert set(ended) == over
    for name in over:
        assert await store.read(name, NOW + 11) == Tombstone("expired", NOW + 10 + int(name[2][2:]) % 2)
    for _ in range(40):
        await store.expire(NOW + 11 + TOMBSTONE_SECONDS, 3)
    assert await store.read(key("p-5"), NOW + 11 + TOMBSTONE_SECONDS) is None


async def test_a_lease_cut_short_ends_early(store: Store):
    put = record(ttl_seconds=1000.0)
    await store.commit([Begin(put), Replace(replace(put, revision=5, ttl_seconds=10.0), put.revision)])
    assert await store.expire(NOW + 12, 10) == [KEY]
    assert await store.read(KEY, NOW + 12) == Tombstone("expired", NOW + 10)
