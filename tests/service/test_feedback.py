"""What a forecaster is fed of its own, feature by feature."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidInput, ModelInvalid
from service.feedback import Feedback, check_future
from service.model_spec import ModelSpec, parse_manifest

OUTPUT, HOLD, GIVEN = {"kind": "output", "places": [0]}, {"kind": "hold"}, {"kind": "given"}
SINE, COSINE = ({"kind": kind, "period_steps": 24, "other": other} for kind, other in (("sine", 3), ("cosine", 2)))


LABELS = ["temperature", "wind", "sine", "cosine"]


def spec_of(feedback: list[dict[str, Any]], features: int | None = None) -> ModelSpec:
    """Of a model with two outputs, read from a manifest."""
    features = features or len(feedback)
    manifest = {
        "format": 1,
        "name": "forecaster",
        "task": "regression",
        "cell": "gru",
        "layers": 1,
        "hidden_size": 1,
        "parameters": 0,
        "streaming": True,
        "inputs": [
            {"name": "x", "dtype": "float32", "shape": ["batch", "time", features], "labels": LABELS[:features]}
        ],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", "time", 2]}],
        "states": [{"name": "h", "input": "h", "output": "h_next", "shape": [1, "batch", 1]}],
        "created_at": "2026-01-01T00:00:00Z",
        "feedback": feedback,
    }
    return parse_manifest(json.dumps(manifest))


def hours(*numbers: float) -> np.ndarray:
    angle = 2 * np.pi * np.array(numbers) / 24
    return np.column_stack([np.sin(angle), np.cos(angle)])


def test_each_feature_comes_from_where_the_manifest_says() -> None:
    spec = spec_of([OUTPUT, HOLD, SINE, COSINE])
    last = np.concatenate([[50, 7], hours(22)[0]]).astype(np.float32)
    feed = Feedback(spec, last, 4, {})
    rows = np.concatenate([feed.follow(np.array([n, 99], np.float32)) for n in range(4)])
    assert feed.ended
    assert rows[:, :2].tolist() == [[0, 7], [1, 7], [2, 7], [3, 7]]
    np.testing.assert_allclose(rows[:, 2:], hours(23, 0, 1, 2), atol=1e-6)


def test_one_output_feeds_as_many_steps_as_it_looks_ahead_but_not_more_than_are_left() -> None:
    feed = Feedback(spec_of([{"kind": "output", "places": [1, 0]}, HOLD]), np.zeros(2, np.float32), 5, {})
    pieces = []
    while not feed.ended:
        pieces.append(feed.follow(np.array([10, 20], np.float32))[:, 0].tolist())
    assert pieces == [[20, 10], [20, 10], [20]]


def test_a_cycle_of_a_year_of_hours_does_not_drift() -> None:
    feed = Feedback(spec_of([OUTPUT, HOLD, SINE, COSINE]), np.array([0, 0, 0, 1], np.float32), 24 * 365, {})
    rows = [feed.follow(np.zeros(2, np.float32)) for _ in range(24 * 365)]
    np.testing.assert_allclose(rows[-1][0, 2:], [0, 1], atol=1e-7)


def test_what_the_caller_knows_ahead_goes_first() -> None:
    spec = spec_of([OUTPUT, GIVEN])
    future = check_future(spec, {"wind": [1, 2, 3]}, 3)
    feed = Feedback(spec, np.zeros(2, np.float32), 3, future)
    assert [feed.follow(np.zeros(2, np.float32))[0, 1] for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("future", "says"),
    [
        ({}, "future_inputs: wind must be given"),
        ({"wind": [1, 2]}, "future_inputs.wind: expected 3 finite float32 numbers"),
        ({"wind": [1, 2, 1e39]}, "future_inputs.wind: expected 3 finite float32 numbers"),
        ({"wind": [1, 2, float("nan")]}, "future_inputs.wind: expected 3 finite float32 numbers"),
        ({"wind": [1, 2, 3], "temperature": [1, 2, 3]}, "'temperature' is none of the features"),
        ({"rain": [1, 2, 3]}, "'rain' is none of the features"),
    ],
)
def test_a_future_that_does_not_fit_is_refused(future: dict[str, list[float]], says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_future(spec_of([OUTPUT, GIVEN]), future, 3)
    assert says in refused.value.message


@pytest.mark.parametrize(
    ("feedback", "says"),
    [
        ([OUTPUT], "one source for each"),
        ([HOLD, HOLD], "features that come from the output"),
        ([OUTPUT, {"kind": "output", "places": [0, 1]}], "all for as many steps ahead"),
        ([{"kind": "output", "places": [2]}, HOLD], "places 0 to 1"),
        ([OUTPUT, {"kind": "sine", "period_steps": 24, "other": 0}], "two halves"),
        ([OUTPUT, {"kind": "sine", "period_steps": 24, "other": 9}], "two halves"),
        ([OUTPUT, {"kind": "guess"}], "feedback.1"),
    ],
)
def test_a_manifest_whose_feedback_cannot_be_is_refused(feedback: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ModelInvalid) as refused:
        spec_of(feedback, features=2)
    assert says in refused.value.message
