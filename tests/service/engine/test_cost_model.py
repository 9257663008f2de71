"""The cost model: what it learns, and the chunk lengths it allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.cost_model import MAX_RUN_SECONDS, CostModel


def linear(seconds_a_row_step: float) -> CostModel:
    model = CostModel(max_rows=64, max_chunk=64)
    model.calibrate(lambda rows, steps: rows * steps * seconds_a_row_step)
    return model


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_proportional_cost_is_predicted_between_the_points_measured(rows: int, steps: int):
    predicted = linear(1e-6).predict(rows, steps)
    exact = rows * steps * 1e-6
    assert exact * 0.999 <= predicted <= exact * 4.001, "a prediction is for the next powers of two"


@pytest.mark.parametrize("steps", [65, 300, 100_000])
def test_a_sequence_longer_than_any_chunk_costs_in_proportion(steps: int):
    assert linear(1e-6).predict(1, steps) == pytest.approx(steps * 1e-6)


def test_the_ladder_keeps_runs_short():
    ladder = linear(MAX_RUN_SECONDS / 100).ladder()
    assert ladder == {1: 64, 2: 32, 4: 16, 8: 8, 16: 4, 32: 2, 64: 1}


def test_a_model_too_slow_for_any_bound_still_runs_step_by_step():
    assert linear(1.0).ladder() == {1: 1}


def test_calibration_stops_at_runs_that_take_too_long():
    measured = []

    def measure(rows: int, steps: int) -> float:
        measured.append(rows * steps)
        return rows * steps * 1e-3

    CostModel(max_rows=256, max_chunk=256).calibrate(measure)
    assert max(measured) <= 4 * 20, "at most one step of the grid beyond the bound"


def test_it_follows_a_machine_that_became_slower():
    model = linear(1e-6)
    before = model.predict(8, 8)
    for _ in range(100):
        model.observe(8, 8, before * 5)
    assert model.predict(8, 8) == pytest.approx(before * 5, rel=0.01)
    assert model.predict(16, 8) == pytest.approx(before * 2), "other sizes are their own"


def test_nothing_measured_is_nothing_known():
    assert CostModel(4, 4).predict(1, 1) == float("inf")


def test_a_ladder_made_on_a_busy_machine_grows_once_it_is_known_better():
    model = linear(MAX_RUN_SECONDS / 8)
    assert model.ladder()[1] == 8
    for _ in range(100):
        model.observe(8, 1, MAX_RUN_SECONDS / 9)
    assert model.ladder()[1] == 64, "twice the rows take twice the time at most"
    assert model.ladder()[2] == 4, "of other lengths nothing was learnt"
