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


@given(st.data())
def test_rows_hold_what_was_put_there_last_in_any_order_of_calls(data: st.DataObject):
    arena, held = Rows(STATES, 5), [0.0] * 5
    batches = st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True)
    slots = data.draw(batches)
    for number in range(1, data.draw(st.integers(1, 12)) + 1):
        if data.draw(st.booleans()):  # else the same rows again
            slots = data.draw(batches)
        action, one = data.draw(st.sampled_from(["scatter", "gather", "read", "write"])), slots[0]
        if action == "scatter":
            values = np.array([number + slot / 8 for slot in slots], np.float32)
            arena.scatter(np.array(slots), [_filled(s, values) for s in STATES])
            for slot in slots:
                held[slot] = number + slot / 8
        elif action == "write":
            arena.write(one, tuple(np.full(s.row_shape, number, np.float32) for s in STATES))
            held[one] = number
        elif action == "gather":
            for got, state in zip(arena.gather(np.array(slots)), STATES, strict=True):
                assert np.array_equal(got, _filled(state, np.array([held[slot] for slot in slots], np.float32)))
        else:
            assert all((part == held[one]).all() for part in arena.read(one))
    assert [float(arena.read(slot)[0][0, 0]) for slot in range(5)] == held


def _filled(state: StateSpec, values: np.ndarray) -> np.ndarray:
    """Each row full of its value."""
    shape = tuple(len(values) if axis == state.batch_axis else 1 for axis in range(len(state.shape)))
    return np.broadcast_to(values.reshape(shape), state.batch_shape(len(values))).copy()


def test_the_same_rows_get_what_was_scattered_without_a_copy_and_others_do_not():
    arena, slots = Rows(STATES, 4), np.array([2, 0])
    states = [_filled(s, np.array([1, 2], np.float32)) for s in STATES]
    arena.scatter(slots, states)
    assert all(got is put for got, put in zip(arena.gather(slots), states, strict=True))
    assert [part[:, 0].tolist() for part in arena.gather(np.array([0, 2]))][1] == [2, 1]


def test_states_of_another_shape_are_refused_before_they_replace_any():
    arena, slots = Rows(STATES, 4), np.array([0, 1])
    arena.scatter(slots, [_filled(s, np.array([1, 2], np.float32)) for s in STATES])
    with pytest.raises(ValueError, match="promised"):
        arena.scatter(slots, [_filled(s, np.array([7], np.float32)) for s in STATES])
    assert arena.read(0)[0].tolist() == np.ones((2, 3)).tolist()
