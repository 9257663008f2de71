"""States that stay on the device where the model runs: only indices cross the bus.

The arena is one tensor a state on the device, and three little graphs read it, write it and look whether its numbers
are finite; see state_graphs. All of this is for one thread, the event loop's; the model may run in another meanwhile.

Every session has CUDA streams of its own. They need no order among them: onnxruntime waits for the streams of a run
before that returns, and for a copy to the device before the binding that asks for it does. So each run here, and each
one of the model, sees all that came before it.

Rows are written in place: the arena's tensor is bound both as what ScatterElements takes and as what it gives, whose
kernels copy the one to the other only where they are not the same memory. Two arenas that are swapped would cost a copy
of all rows every tick. In place is safe here: nothing but the rows named is written, the model sees what was gathered
and never the arena, and a scatter comes after the run and after the look at its results, when it is known which rows
may be kept.

As on the host, states that were scattered wait until others are asked for: where the same rows run again and again,
what came out of one run goes into the next one, and only the look at the numbers is left to do between them.

With the provider `cpu` the device is the host, and all of it works the same. That is how it is tested: nobody has run
it on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.engine.request import State
from service.engine.sessions import open_helper
from service.engine.state_arena import pack_rows
from service.engine.state_graphs import (
    CHECKED,
    ROWS,
    SLOTS,
    arena,
    arena_after,
    batch,
    check_graph,
    gather_graph,
    scatter_graph,
)
from service.model_spec import StateSpec

FIRST_SLOTS = 1024
"""What the arena has room for at first. It doubles when more are used: a device backs all that is asked for."""

MOVED_AT_ONCE = 4096
"""Rows that move into a larger arena in one piece."""

MOST_NUMBERS = 2**31 - 1
"""Of one state in the arena: CUDA's ScatterElements counts them in 32 bits."""


_NO_SLOTS: NDArray[np.intp] = np.zeros(0, np.intp)


class DeviceStates:
    """States of many rows on the device, shaped as the model's graph has them. They never change."""

    __slots__ = ("_host", "values")

    def __init__(self, values: Sequence[ort.OrtValue]) -> None:
        self.values = values
        self._host: list[NDArray[np.float32]] | None = None

    def on_host(self) -> list[NDArray[np.float32]]:
        """A copy on the host, made once, for those whose state a caller or a store asks for."""
        if self._host is None:
            self._host = [value.numpy() for value in self.values]
        return self._host


class DeviceRows:
    """What Rows is, on `device`: "cuda" or "cpu"."""

    def __init__(self, states: Sequence[StateSpec], num_slots: int, device: str) -> None:
        assert states, "a model without states keeps nothing on a device"
        self._states = tuple(states)
        self._axes = tuple(state.batch_axis for state in states)
        self._device = device
        self._gather, self._scatter, self._check = (
            open_helper(graph(states), device) for graph in (gather_graph, scatter_graph, check_graph)
        )
        self._num_slots = num_slots
        self._positions = [0] * num_slots
        self._written: dict[int, State | None] = {}  # rows set by `write` that are not on the device yet
        self._last_slots, self._last = _NO_SLOTS, DeviceStates(())  # rows scattered last that are not in the arena yet
        self._capacity = min(num_slots, FIRST_SLOTS)
        self._arenas = self._allocate(self._capacity)

    def gather(self, slots: NDArray[np.intp]) -> DeviceStates:
        if slots.tobytes() == self._last_slots.tobytes():
            return self._last
        self._put_back()
        if self._written:
            self._bring([slot for slot in slots.tolist() if slot in self._written])
        return self._gather_from(self._arenas, slots)

    def position(self, slot: int) -> int:
        return self._positions[slot]

    def advance(self, slot: int, steps: int) -> None:
        self._positions[slot] += steps

    def scatter(self, slots: NDArray[np.intp], states: DeviceStates, rows: list[int] | None = None) -> None:
        if not len(slots):
            return
        if rows is not None:
            self._put_back()
            self._put(slots, states, np.array(rows))
            return
        shapes = [state.batch_shape(len(slots)) for state in self._states]
        if (found := [tuple(value.shape()) for value in states.values]) != shapes:
            raise ValueError(f"States of shapes {shapes} were promised, not {found}.")
        if slots.tobytes() != self._last_slots.tobytes():
            self._put_back()
        self._last_slots, self._last = slots, states
        self._forget(slots)

    def non_finite(self, states: DeviceStates) -> list[int]:
        binding = self._check.io_binding()
        for n, value in enumerate(states.values):
            binding.bind_ortvalue_input(batch(n), value)
        binding.bind_output(CHECKED, "cpu")
        self._check.run_with_iobinding(binding)
        return [int(row) for row in np.flatnonzero(np.isnan(binding.get_outputs()[0].numpy()))]

    def row(self, states: DeviceStates, row: int) -> State:
        return tuple(np.take(state, row, axis=axis) for state, axis in zip(states.on_host(), self._axes, strict=True))

    def pack(self, states: DeviceStates, rows: list[int]) -> list[bytes]:
        return pack_rows(states.on_host(), self._axes, rows)

    def save(self, slots: Sequence[int]) -> list[tuple[DeviceStates, int]]:
        """They stay on the device, all together, until none of them is needed any more."""
        states = self.gather(np.array(slots))
        return [(states, place) for place in range(len(slots))]

    def restore(self, slot: int, saved: tuple[DeviceStates, int]) -> None:
        states, place = saved
        self.scatter(np.array([slot]), states, [place])

    def read(self, slot: int) -> State:
        self._put_back()
        if slot in self._written:
            state = self._written[slot]
            return tuple(np.zeros(s.row_shape, np.float32) for s in self._states) if state is None else _copy(state)
        return self.row(self._gather_from(self._arenas, np.array([slot])), 0)

    def write(self, slot: int, state: State | None, position: int | None = None) -> None:
        """It reaches the device with the row's next run, together with all that were written and run then too."""
        if position is not None:
            self._positions[slot] = position
        if slot in self._last_slots:
            self._put_back()
        self._written[slot] = None if state is None else _copy(state)

    def find_fault(self) -> str | None:
        """Move a few rows about and look at them: what this device gets wrong. For an arena that nobody uses yet."""
        count = min(3, self._num_slots)
        slots, turned = np.arange(count), np.roll(np.arange(count), 1)
        sent = [
            tuple(np.random.default_rng(slot).random(s.row_shape, np.float32) for s in self._states) for slot in slots
        ]
        for slot in slots.tolist():
            self.write(slot, sent[slot])
        self.scatter(turned, self.gather(slots))
        for slot, place in zip(slots.tolist(), turned.tolist(), strict=True):
            if not all(map(np.array_equal, self.read(place), sent[slot])):
                return "rows come back changed"
        self.write(0, tuple(np.full(s.row_shape, np.nan, np.float32) for s in self._states))
        if self.non_finite(self.gather(slots)) != [0]:
            return "numbers that are not finite are not found"
        for slot in slots.tolist():
            self.write(slot, None)
        return None

    def _put_back(self) -> None:
        """Write the states that were scattered last to their places."""
        if len(self._last_slots):
            self._put(self._last_slots, self._last, np.arange(len(self._last_slots)))
            self._last_slots, self._last = _NO_SLOTS, DeviceStates(())

    def _bring(self, slots: list[int]) -> None:
        """Bring to the device what was written to these slots."""
        if not slots:
            return
        values = []
        for n, (spec, axis) in enumerate(zip(self._states, self._axes, strict=True)):
            zeros = np.zeros(spec.row_shape, np.float32)
            rows = [zeros if state is None else state[n] for state in map(self._written.__getitem__, slots)]
            values.append(ort.OrtValue.ortvalue_from_numpy(np.stack(rows, axis=axis), self._device, 0))
        self._put(np.array(slots), DeviceStates(values), np.arange(len(slots)))

    def _put(self, slots: NDArray[np.intp], states: DeviceStates, rows: NDArray[np.intp]) -> None:
        self._make_room(int(slots.max()) + 1)
        self._scatter_to(self._arenas, slots, states, rows)
        self._forget(slots)

    def _forget(self, slots: NDArray[np.intp]) -> None:
        """What was written to these slots was before what is there now."""
        if self._written:
            for slot in slots.tolist():
                self._written.pop(slot, None)

    def _make_room(self, needed: int) -> None:
        if needed <= self._capacity:
            return
        capacity = min(self._num_slots, max(needed, 2 * self._capacity))
        larger = self._allocate(capacity)
        for first in range(0, self._capacity, MOVED_AT_ONCE):
            slots = np.arange(first, min(first + MOVED_AT_ONCE, self._capacity))
            self._scatter_to(larger, slots, self._gather_from(self._arenas, slots), np.arange(len(slots)))
        self._arenas, self._capacity = larger, capacity

    def _allocate(self, capacity: int) -> list[ort.OrtValue]:
        """Not set to anything: every row is written before it is read."""
        shapes = [(capacity, prod(state.row_shape)) for state in self._states]
        return [ort.OrtValue.ortvalue_from_shape_and_type(s, np.float32, self._device, 0) for s in shapes]

    def _gather_from(self, arenas: list[ort.OrtValue], slots: NDArray[np.intp]) -> DeviceStates:
        binding = self._gather.io_binding()
        binding.bind_cpu_input(SLOTS, np.ascontiguousarray(slots, np.int64))
        for n, value in enumerate(arenas):
            binding.bind_ortvalue_input(arena(n), value)
            binding.bind_output(batch(n), self._device, 0)
        self._gather.run_with_iobinding(binding)
        return DeviceStates(binding.get_outputs())

    def _scatter_to(
        self, arenas: list[ort.OrtValue], slots: NDArray[np.intp], states: DeviceStates, rows: NDArray[np.intp]
    ) -> None:
        binding = self._scatter.io_binding()
        binding.bind_cpu_input(SLOTS, np.ascontiguousarray(slots, np.int64).reshape(-1, 1))
        binding.bind_cpu_input(ROWS, np.ascontiguousarray(rows, np.int64))
        for n, (value, state) in enumerate(zip(arenas, states.values, strict=True)):
            binding.bind_ortvalue_input(arena(n), value)
            binding.bind_ortvalue_input(batch(n), state)
            binding.bind_ortvalue_output(arena_after(n), value)
        self._scatter.run_with_iobinding(binding)


def _copy(state: State) -> State:
    return tuple(np.array(tensor, np.float32) for tensor in state)
