"""The tasks: data as promised, splits that do not touch, metrics with known answers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from models import tasks
from models.sequence_model import ModelConfig
from models.tasks import adding, kjv, vowels, weather
from models.tasks.task import NO_CLASS, Split

REAL = ("vowels", "weather", "kjv")


def test_tasks_can_be_read_without_torch() -> None:
    script = "import sys, models.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_an_unknown_task_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(KeyError, match=r"no task 'vowel'; there are vowels, weather, kjv, adding-rnn"):
        tasks.find("vowel")


@pytest.mark.parametrize("name", tasks.TASKS)
def test_shapes_and_labels_fit_the_model(name: str) -> None:
    task = tasks.TASKS[name]
    config = ModelConfig(**task.model)
    split = task.test_split()
    places = task.input.get("vocabulary") or task.input["labels"]
    assert len(places) == config.input_size
    assert len(task.output.get("vocabulary") or task.output["labels"]) == config.output_size
    for x, y in zip(split.inputs, split.targets, strict=True):
        assert x.shape == ((len(y),) if config.embedding_size else (len(y), config.input_size))
        assert y.shape == ((len(x), config.output_size) if task.kind == "regression" else (len(x),))
        assert np.isfinite(x).all()


@pytest.mark.parametrize("name", REAL)
def test_no_test_or_validation_series_is_trained_on(name: str) -> None:
    task = tasks.TASKS[name]
    seen = {x.tobytes() for x in task.train_split(0).inputs}
    held_out = [*task.valid_split().inputs, *task.test_split().inputs]
    assert not [x for x in held_out if x.tobytes() in seen]


def test_vowels_are_the_official_split() -> None:
    train, test = vowels.read("train"), vowels.read("test")
    assert (len(train.inputs), len(test.inputs)) == (270, 370)
    lengths = {len(x) for x in (*train.inputs, *test.inputs)}
    assert (min(lengths), max(lengths)) == (7, 29)
    assert np.bincount([y[-1] for y in train.targets]).tolist() == [30] * 9
    assert np.bincount([y[-1] for y in test.targets]).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert all((y[:-1] == NO_CLASS).all() for y in train.targets)
    assert train.inputs[0][:2, 0].tolist() == pytest.approx([1.860936, 1.891651])


def test_vowel_accuracy_counts_the_last_step_only() -> None:
    wrong_then_right = np.array([[0.0, 1.0], [0.9, 0.1]])
    targets = [np.array([NO_CLASS, 0]), np.array([NO_CLASS, 1])]
    assert vowels.accuracy([], [wrong_then_right, wrong_then_right], targets) == 50.0


def test_the_bible_is_whole_and_every_20th_chapter_is_for_the_test() -> None:
    chapters = kjv.chapters()
    assert len(chapters) == 1189
    assert sum(chapter.count("\n") for chapter in chapters) == 31102
    assert chapters[0].startswith("In the beginning God created the heaven and the earth.\nAnd the earth")
    assert chapters[-1].endswith("The grace of our Lord Jesus Christ be with you all. Amen.\n")
    assert {c for chapter in chapters for c in chapter} == set(kjv.VOCABULARY)
    tests = [index for index in range(1189) if kjv.part(index) == "test"]
    assert tests == list(range(19, 1189, 20))


def test_a_chapter_is_predicted_from_its_first_character() -> None:
    split = kjv.split("test")
    target = split.targets[0]
    assert "".join(kjv.VOCABULARY[token] for token in target) == kjv.chapters()[19]
    assert split.inputs[0].tolist() == [kjv.NEWLINE, *target[:-1].tolist()]


def test_guessing_evenly_costs_log2_of_the_vocabulary() -> None:
    target = np.arange(63)
    even = np.full((63, 63), 4.0, dtype=np.float32)
    certain = np.where(np.eye(63) > 0, 200.0, 0.0)
    assert kjv.bits_per_character([], [even], [target]) == pytest.approx(np.log2(63), abs=1e-12)
    assert kjv.bits_per_character([], [certain], [target]) == pytest.approx(0.0, abs=1e-12)


def test_weather_features_never_look_ahead() -> None:
    values = np.array([[np.nan, 1.0], [2.0, np.nan], [np.nan, np.nan], [5.0, 6.0]])
    filled = weather._fill_forward(values)
    assert filled.tolist() == [[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [5.0, 6.0]]


def test_weather_targets_are_the_recorded_temperatures_of_the_next_day() -> None:
    features, recorded = weather.airport("JFK")
    x, y = weather._series("JFK", 100, 200)
    assert x.tolist() == features[100:200].tolist()
    np.testing.assert_array_equal(y[0], recorded[101:125])
    np.testing.assert_array_equal(y[75], recorded[176:200])
    assert np.isnan(y[76, 23])  # hour 200 lies beyond the cut
    assert np.isnan(y[99]).all()


def test_weather_clock_is_eastern_standard_time() -> None:
    assert weather._hour_of_2013("2013-01-01T05:00:00Z") == 0
    assert weather._hour_of_2013("2013-07-04T16:00:00Z") % 24 == 11


def test_wind_of_a_thousand_miles_an_hour_is_no_wind() -> None:
    inputs = np.concatenate([weather.airport(place)[0] for place in weather.AIRPORTS])
    assert np.abs(inputs[:, 3:5]).max() < 60


def test_weather_baselines() -> None:
    persistence, ridge = (reference.value for reference in weather.references())
    assert persistence == pytest.approx(5.602, abs=0.001)
    assert ridge == pytest.approx(4.252, abs=0.001)


def test_mean_absolute_error_leaves_out_unrecorded_hours() -> None:
    target = np.full((2, 24), np.nan)
    target[0] = 50.0
    assert weather.mean_absolute_error([], [np.full((2, 24), 53.0)], [target]) == 3.0


def test_adding_series_hold_two_marks_and_their_sum() -> None:
    split = adding.draw(50, [5])
    for x, y in zip(split.inputs, split.targets, strict=True):
        assert x[:, 1].sum() == 2.0
        assert y[-1, 0] == x[x[:, 1] == 1.0, 0].sum()
        assert np.isnan(y[:-1]).all()


def test_always_answering_one_has_an_error_of_a_sixth() -> None:
    task = tasks.TASKS["adding-lstm"]
    assert task.evaluate(lambda inputs: [np.ones((100, 1)) for _ in inputs]) == pytest.approx(1 / 6, abs=0.01)


def test_training_series_of_the_adding_problem_are_new_in_each_epoch() -> None:
    task = tasks.TASKS["adding-gru"]
    first, again, second = task.train_split(0), task.train_split(0), task.train_split(1)
    assert np.array_equal(first.inputs[0], again.inputs[0])
    assert not np.array_equal(first.inputs[0], second.inputs[0])


def test_a_split_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="same lengths"):
        Split([np.zeros((3, 1))], [np.zeros(2)])


@pytest.mark.parametrize(("name", "better", "worse"), [("vowels", 97.0, 96.0), ("kjv", 1.5, 1.6)])
def test_better_follows_the_metric_and_nan_is_never_better(name: str, better: float, worse: float) -> None:
    task = tasks.TASKS[name]
    assert task.is_better(better, than=worse)
    assert not task.is_better(worse, than=better)
    assert not task.is_better(float("nan"), than=worse)
    assert not task.is_better(float("nan"), than=None)
