"""Where states live between runs: slots say who owns which row, rows are the arrays."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.request import Batched, Saved, State
from service.errors import NoRoom
from service.model_spec import StateSpec

_NO_SLOTS: NDArray[np.intp] = np.zeros(0, np.intp)


class Slots:
    """Hands out slot numbers. The one freed last goes first, so that the rows in use stay few and warm."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._freed: list[int] = []
        self._next = 0

    @property
    def num_used(self) -> int:
        return self._next - len(self._freed)

    def allocate(self) -> int:
        """Raises NoRoom when every slot is taken."""
        if self._freed:
            return self._freed.pop()
        if self._next == self.num_slots:
            raise NoRoom(
                f"All {self.num_slots} slots of this model are taken. End sequences that are done, or try again later.",
                limit=self.num_slots,
            )
        self._next += 1
        return self._next - 1

    def free(self, slot: int) -> None:
        assert slot not in self._freed[-8:], f"slot {slot} freed twice"
        self._freed.append(slot)


class Arena(Protocol):
    """One row a slot. What it gathers, and what a run makes of that, only it and its runner look into."""

    def gather(self, slots: NDArray[np.intp]) -> Batched:
        """States of these rows as they are now, whatever is written after. Only to be read."""

    def scatter(self, slots: NDArray[np.intp], states: Batched, rows: list[int] | None = None) -> None:
        """Set these rows to states as `gather` gives them, which change no more; or only to `rows` of those."""

    def non_finite(self, states: Batched) -> list[int]:
        """Rows in whose states a number is NaN or infinite; one may be named more than once."""

    def row(self, states: Batched, row: int) -> State:
        """One row of many."""

    def pack(self, states: Batched, rows: list[int]) -> list[bytes]:
        """Each row's tensors, back to back."""

    def position(self, slot: int) -> int:
        """Steps that the row has behind it."""

    def advance(self, slot: int, steps: int) -> None:
        """Count steps whose state is kept."""

    def read(self, slot: int) -> State:
        """A copy of one row's state, `(L, H)` each."""

    def write(self, slot: int, state: State | None, position: int | None = None) -> None:
        """Set one row's state, None is all zeros, and its position unless that is None."""

    def save(self, slots: Sequence[int]) -> Sequence[Saved]:
        """What `restore` puts back, for each row."""

    def restore(self, slot: int, saved: Saved) -> None:
        """Set a row's state to what it was; its position did not move."""


class Rows:
    """One array a state tensor, `(L, slots, H)`: the slot axis stands where the model has its batch axis.

    The arrays are as large as the arena may ever get; the operating system backs a page when it is first written.

    States that were scattered stay as they came until others are asked for: where the same rows run again and again,
    what came out of one run goes into the next one, and nothing is copied.
    """

    def __init__(self, states: Sequence[StateSpec], num_slots: int) -> None:
        self._specs = states
        self._axes = tuple(state.batch_axis for state in states)
        self._arrays = tuple(
            _zeros((*s.row_shape[: s.batch_axis], num_slots, *s.row_shape[s.batch_axis :]), np.dtype(s.dtype))
            for s in states
        )
        self._before_slots = tuple((slice(None),) * axis for axis in self._axes)
        self._positions = [0] * num_slots
        self._last_slots, self._last = _NO_SLOTS, list[NDArray[np.float32]]()
        # the same memory with the slot axis first, for reading and writing single rows
        self._by_slot = tuple(np.moveaxis(a, axis, 0) for a, axis in zip(self._arrays, self._axes, strict=True))

    def gather(self, slots: NDArray[np.intp]) -> list[NDArray[np.float32]]:
        """Batched as the graph wants them: `(L, B, H)` each. Only to be read."""
        if slots.tobytes() != self._last_slots.tobytes():
            self._put_back()
            return [a.take(slots, axis=axis) for a, axis in zip(self._arrays, self._axes, strict=True)]
        return self._last

    def position(self, slot: int) -> int:
        return self._positions[slot]

    def advance(self, slot: int, steps: int) -> None:
        self._positions[slot] += steps

    def scatter(
        self, slots: NDArray[np.intp], states: Sequence[NDArray[np.float32]], rows: list[int] | None = None
    ) -> None:
        if rows is not None:
            states = [state.take(rows, axis=axis) for state, axis in zip(states, self._axes, strict=True)]
        shapes = [state.batch_shape(len(slots)) for state in self._specs]
        if [state.shape for state in states] != shapes:  # found now, that the run which gave them fails
            raise ValueError(f"States of shapes {shapes} were promised, not {[state.shape for state in states]}.")
        if slots.tobytes() != self._last_slots.tobytes():
            self._put_back()
        self._last_slots, self._last = slots, list(states)

    def read(self, slot: int) -> State:
        self._put_back()
        return tuple(a[slot].copy() for a in self._by_slot)

    def write(self, slot: int, state: State | None, position: int | None = None) -> None:
        if position is not None:
            self._positions[slot] = position
        self._put_back()
        for index, a in enumerate(self._by_slot):
            a[slot] = 0.0 if state is None else state[index]

    def non_finite(self, states: Sequence[NDArray[np.float32]]) -> list[int]:
        return [row for s, axis in zip(states, self._axes, strict=True) for row in non_finite_rows(s, axis)]

    def row(self, states: Sequence[NDArray[np.float32]], row: int) -> State:
        return tuple(np.take(state, row, axis=axis) for state, axis in zip(states, self._axes, strict=True))

    def pack(self, states: Sequence[NDArray[np.float32]], rows: list[int]) -> list[bytes]:
        return pack_rows(states, self._axes, rows)

    def save(self, slots: Sequence[int]) -> list[State]:
        return [self.read(slot) for slot in slots]

    def restore(self, slot: int, saved: State) -> None:
        self.write(slot, saved)

    def _put_back(self) -> None:
        """Write the states that were scattered last to their places."""
        for array, before, new in zip(self._arrays, self._before_slots, self._last, strict=False):
            place: tuple[Any, ...] = (*before, self._last_slots)
            array[place] = new
        self._last_slots, self._last = _NO_SLOTS, []


def non_finite_rows(tensor: NDArray[np.float32], axis: int) -> list[int]:
    """Rows, along `axis`, in which a number is NaN or infinite."""
    finite = np.isfinite(tensor)
    if np.logical_and.reduce(finite, axis=None):  # what `all` does, by way of more Python
        return []
    others = tuple(n for n in range(tensor.ndim) if n != axis)
    return [int(row) for row in np.flatnonzero(~finite.all(axis=others))]


def pack_rows(states: Sequence[NDArray[np.float32]], axes: Sequence[int], rows: list[int]) -> list[bytes]:
    """Of states batched along `axes`, each row's tensors, back to back: one copy for all of them."""
    tensors = zip(states, axes, strict=True)
    parts = [np.moveaxis(state, axis, 0)[rows].reshape(len(rows), -1) for state, axis in tensors]
    packed = np.concatenate(parts, axis=1).tobytes()
    size = len(packed) // len(rows)
    return [packed[at : at + size] for at in range(0, len(packed), size)]


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Backed page by page as it is first written.

    NumPy asks for huge pages; to zero one of those takes a virtual machine milliseconds, in the middle of a tick.
    """
    size = prod(shape) * dtype.itemsize
    if size < mmap.PAGESIZE or not hasattr(mmap, "MAP_PRIVATE"):
        return np.zeros(shape, dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype).reshape(shape)
