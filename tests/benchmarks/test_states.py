"""The comparison of states on the device with states on the host: it measures both, and both must agree."""

from __future__ import annotations

import pytest
from rich.console import Console

from benchmarks import states
from service.engine.device_rows import DeviceRows


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "MODELS", (("gru", 3, 8, 2),))
    monkeypatch.setattr(states, "ROWS", (1, 3))
    monkeypatch.setattr(states, "NUM_SLOTS", 800)


def test_every_number_of_rows_is_measured_both_ways() -> None:
    found = states.compare_states(Console(quiet=True), "cpu", 0.01, 2)
    assert [(cell["rows"], cell["in_turn"]) for cell in found] == [(1, False), (1, True), (3, False), (3, True)]
    assert all(cell["host"] > 0 and cell["device"] > 0 for cell in found)


def test_states_that_differ_void_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceRows, "scatter", lambda *_: None)
    with pytest.raises(SystemExit, match="failed at a trial"):
        states.compare_states(Console(quiet=True), "cpu", 0.01, 2)
    monkeypatch.setattr(DeviceRows, "find_fault", lambda _: None)
    with pytest.raises(SystemExit, match="not those on the host"):
        states.compare_states(Console(quiet=True), "cpu", 0.01, 2)
