"""Slots and rows: who owns which, and that nothing of one row reaches another, wherever they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.engine import device_rows
from service.engine.device_rows import DeviceRows, DeviceStates
from service.engine.state_arena import Arena, Rows, Slots
from service.errors import NoRoom
from service.model_spec import StateSpec


def state(*shape: Any) -> StateSpec:
    return StateSpec(name="s", input="s", output="s_next", shape=shape)


STATES = (state(2, "batch", 3), state("batch", 4))
MANY_STATES = (*STATES, state("batch"), state(1, "batch", 5), state(3, 2, "batch", 2), state(4, "batch"))
NEEDS_CUDA = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs onnxruntime's CUDA build and a GPU: make install GPU=1",
)
KINDS = [
    pytest.param(Rows, id="host"),
    pytest.param(partial(DeviceRows, device="cpu"), id="device-cpu"),
    pytest.param(partial(DeviceRows, device="cuda"), id="device-cuda", marks=NEEDS_CUDA),
]
ODD = np.array([0.0, -0.0, 1e-42, -1e-45, 3e38, np.inf, -np.inf, np.nan], np.float32)
"""Numbers that a device might change on the way."""


def on_host(states: Any) -> Sequence[NDArray[np.float32]]:
    return states.on_host() if isinstance(states, DeviceStates) else states


def same_bits(one: Sequence[NDArray[np.float32]], other: Sequence[NDArray[np.float32]]) -> bool:
    """To the last bit and the sign of zero, but any NaN is like another."""
    return [(a.shape, plain(a)) for a in one] == [(b.shape, plain(b)) for b in other]


def plain(numbers: NDArray[np.float32]) -> bytes:
    return np.where(np.isnan(numbers), np.float32(np.nan), numbers).tobytes()


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


@pytest.mark.parametrize("kind", KINDS)
@given(order=st.permutations(range(6)), rows=st.integers(1, 6))
@settings(max_examples=25)
def test_what_was_written_is_gathered_whatever_the_batch_axis(
    kind: Callable[..., Arena], order: list[int], rows: int
) -> None:
    arena, slots = kind(STATES, 6), np.array(order[:rows])
    for slot in range(6):
        arena.write(slot, None)
    rng = np.random.default_rng(rows)
    written = [tuple(rng.normal(size=s.row_shape).astype(np.float32) for s in STATES) for _ in slots]
    for slot, one in zip(slots.tolist(), written, strict=True):
        arena.write(slot, one)
    for n, (got, spec) in enumerate(zip(on_host(arena.gather(slots)), STATES, strict=True)):
        assert got.flags.c_contiguous
        assert np.array_equal(got, np.stack([one[n] for one in written], axis=spec.batch_axis))
    assert all(same_bits(arena.read(slot), one) for slot, one in zip(slots.tolist(), written, strict=True))
    untouched = set(range(6)) - set(slots.tolist())
    assert all(not part.any() for slot in untouched for part in arena.read(slot))


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_was_read_or_gathered_or_saved_does_not_change_with_the_row(kind: Callable[..., Arena]) -> None:
    arena, ones = kind(STATES, 2), (np.ones((2, 3), np.float32), np.ones(4, np.float32))
    arena.write(1, None)
    before, gathered, (saved,) = arena.read(1), arena.gather(np.array([1])), arena.save([1])
    arena.write(1, ones)
    ones[0][:] = 7
    assert (arena.read(1)[0] == 1).all(), "it was copied"
    arena.gather(np.array([1]))
    assert not any(part.any() for part in (*before, *on_host(gathered)))
    assert (arena.read(1)[0] == 1).all()
    arena.restore(1, saved)
    assert not any(part.any() for part in arena.read(1))
    arena.write(1, (np.ones((2, 3), np.float32), np.ones(4, np.float32)))
    arena.restore(1, saved)
    assert not any(part.any() for part in arena.read(1)), "whichever came last"


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_rows_with_a_number_that_is_not_finite_are_found(kind: Callable[..., Arena], data: st.DataObject) -> None:
    arena, rows = kind(MANY_STATES, 9), data.draw(st.integers(1, 9))
    bad = data.draw(st.dictionaries(st.integers(0, rows - 1), st.sampled_from([np.inf, -np.inf, np.nan])))
    for slot in range(rows):
        written = [np.full(s.row_shape, 3e38, np.float32) for s in MANY_STATES]
        if slot in bad:
            part = written[data.draw(st.integers(0, len(written) - 1))]
            part.reshape(-1)[data.draw(st.integers(0, part.size - 1))] = bad[slot]
        arena.write(slot, tuple(written))
    assert set(arena.non_finite(arena.gather(np.arange(rows)))) == set(bad)


@st.composite
def deeds(draw: st.DrawFn) -> list[tuple[str, list[int], int]]:
    """(what, slots, seed)"""
    kinds = st.sampled_from(["write", "reset", "step", "again", "keep some", "save", "restore", "look"])
    slots = st.lists(st.integers(0, 22), min_size=1, max_size=6, unique=True)
    return draw(st.lists(st.tuples(kinds, slots, st.integers(0, 99)), max_size=25))


@pytest.mark.parametrize("kind", KINDS[1:])
@given(script=deeds())
@settings(max_examples=60, deadline=None)
def test_a_device_holds_just_what_the_host_would(
    kind: Callable[..., Arena], script: list[tuple[str, list[int], int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_rows, "FIRST_SLOTS", 2)  # so that it grows
        patch.setattr(device_rows, "MOVED_AT_ONCE", 3)
        host, device = Rows(MANY_STATES, 23), kind(MANY_STATES, 23)
        opened: set[int] = set()
        saved: dict[int, tuple[Any, Any]] = {}
        for what, slots, seed in script:
            for slot in set(slots) - opened:
                host.write(slot, None, 0)
                device.write(slot, None, 0)
            opened.update(slots)
            act(what, slots, np.random.default_rng(seed), host, device, saved)
        for slot in opened:
            assert same_bits(host.read(slot), device.read(slot))
            assert host.position(slot) == device.position(slot)


def act(
    what: str,
    slots: list[int],
    rng: np.random.Generator,
    host: Arena,
    device: Arena,
    saved: dict[int, tuple[Any, Any]],
) -> None:
    """One deed, done to both, and what it brings compared."""
    some = [row for row in range(len(slots)) if rng.integers(2)]
    if what in ("write", "reset"):
        for slot in slots:
            one = tuple(odd_numbers(rng, s.row_shape) for s in MANY_STATES) if what == "write" else None
            host.write(slot, one, slot)
            device.write(slot, one, slot)
    elif what == "save":
        for slot, *both in zip(slots, host.save(slots), device.save(slots), strict=True):
            saved[slot] = (both[0], both[1])
    elif what == "restore":
        for slot in set(slots) & saved.keys():
            host.restore(slot, saved[slot][0])
            device.restore(slot, saved[slot][1])
    else:
        rolled = slots if what == "again" else slots[1:] + slots[:1]  # rows go to other slots than they are from
        on_one, on_other = host.gather(np.array(slots)), device.gather(np.array(slots))
        assert same_bits(on_one, on_host(on_other))
        assert all(same_bits(host.row(on_one, row), device.row(on_other, row)) for row in range(len(slots)))
        packed = (arena.pack(states, [*some, 0]) for arena, states in ((host, on_one), (device, on_other)))
        one, other = ([np.frombuffer(row, np.float32) for row in rows] for rows in packed)
        assert same_bits(one, other)
        if what in ("step", "again"):
            host.scatter(np.array(rolled), on_one)
            device.scatter(np.array(rolled), on_other)
        elif what == "keep some" and some:
            host.scatter(np.array(rolled)[some], on_one, some)
            device.scatter(np.array(rolled)[some], on_other, some)
            for slot in rolled:
                host.advance(slot, 2)
                device.advance(slot, 2)


def odd_numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    numbers = np.asarray(rng.normal(size=shape), np.float32)
    return np.where(rng.random(shape) < 0.1, rng.choice(ODD, shape), numbers).astype(np.float32)


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


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_device_moves_nothing_where_the_same_rows_run_again(kind: Callable[..., Any]) -> None:
    arena, slots, moved = kind(STATES, 4), np.array([2, 0]), []
    for slot in (2, 0):
        arena.write(slot, None)
    states = arena.gather(slots)
    put = arena._scatter_to
    arena._scatter_to = lambda *arguments: moved.append(put(*arguments))
    for _ in range(3):
        arena.scatter(slots, states)
        assert arena.gather(slots) is states
    arena.write(1, None)  # of another row
    assert arena.gather(slots) is states
    assert not moved
    arena.write(2, (np.ones((2, 3), np.float32), np.ones(4, np.float32)))
    assert [part[:, 0].tolist() for part in on_host(arena.gather(slots))][1] == [1, 0]
    with pytest.raises(ValueError, match="promised"):
        arena.scatter(np.array([1, 2, 3]), states)
