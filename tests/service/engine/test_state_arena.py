"""Slots and rows: who owns which, and that nothing of one row reaches another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.state_arena import Rows, Slots
from service.errors import NoRoom
from service.model_spec import StateSpec

STATES = (
    StateSpec(name="z", input="z", output="z_next", shape=(2, "batch", 3)),
    StateSpec(name="a", input="a", output="a_next", shape=("batch", 4)),
)


@given(st.lists(st.booleans(), max_size=60))
def test_a_slot_has_one_owner(take_or_give: list[bool]):
    slots, owned = Slots(8), []
    for take in take_or_give:
        if take and len(owned) < 8:
            owned.append(slots.allocate())
        elif owned:
            slots.free(owned.pop(0))
        assert len(set(owned)) == len(owned) == slots.num_used
        assert all(0 <= slot < 8 for slot in owned)


def test_a_full_arena_says_so():
    slots = Slots(1)
    slots.allocate()
    with pytest.raises(NoRoom, match="All 1 slots"):
        slots.allocate()


@given(st.permutations(range(6)), st.integers(1, 6))
def test_scatter_and_gather_are_each_others_inverse_whatever_the_batch_axis(order: list[int], rows: int):
    arena, slots = Rows(STATES, 6), np.array(order[:rows])
    rng = np.random.default_rng(rows)
    states = [rng.normal(size=s.batch_shape(rows)).astype(np.float32) for s in STATES]
    arena.scatter(slots, states)
    for got, put in zip(arena.gather(slots), states, strict=True):
        assert got.flags.c_contiguous
        assert np.array_equal(got, put)
    for place, slot in enumerate(slots):
        z, a = arena.read(slot)
        assert np.array_equal(z, states[0][:, place])
        assert np.array_equal(a, states[1][place])
    untouched = set(range(6)) - set(slots.tolist())
    assert all(not part.any() for slot in untouched for part in arena.read(slot))


def test_a_state_that_was_read_does_not_change_with_the_row():
    arena = Rows(STATES, 2)
    before = arena.read(1)
    arena.write(1, (np.ones((2, 3), np.float32), np.ones(4, np.float32)))
    assert not before[0].any()
    arena.write(1, None)
    assert not arena.read(1)[0].any()
