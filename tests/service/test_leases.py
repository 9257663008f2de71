"""Leases come up when they are due, each once, and hold nobody who was forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.leases import Leases


@given(st.lists(st.floats(0, 100), max_size=40), st.integers(1, 10), st.sets(st.integers(0, 39)))
def test_each_comes_up_once_and_not_before_its_time(untils: list[float], most: int, forgotten: set[int]):
    leases: Leases[int] = Leases()
    seconds = {n: leases.watch(n, until) for n, until in enumerate(untils)}
    for n in forgotten & seconds.keys():
        leases.forget(n, seconds[n])
    seen: list[int] = []
    for now in range(110):
        while taken := leases.take_due(float(now), most):
            assert len(taken) <= most
            assert all(untils[n] <= now for n in taken)
            seen += taken
    assert sorted(seen) == sorted(seconds.keys() - forgotten)
