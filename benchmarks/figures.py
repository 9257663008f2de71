"""Arithmetic of the tables: percentiles, spreads over repeats, and how a row stands to its figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest rank: the least value that `percent` of the ascending values do not exceed; NaN of none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def latency_summary(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99, p99.9 and max in milliseconds, and the count."""
    ordered = sorted(seconds)
    points = {"p50": 50.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
    return {
        "count": len(ordered),
        **{f"{name}_ms": 1000 * percentile(ordered, percent) for name, percent in points.items()},
    }


@dataclass
class Row:
    """One line of the table: a quantity, its values over the repeats, and the figure it should reach."""

    key: str
    title: str
    unit: str = "x"
    bound: float | None = None
    """What the median should reach; None: for information."""
    better: Literal["lower", "higher", "equal"] = "higher"
    values: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float:
        return median(self.values) if self.values else math.nan

    @property
    def reached(self) -> bool | None:
        """Is the figure reached? None without a figure or without a valid run."""
        if self.bound is None or not self.values:
            return None
        if self.better == "equal":
            return all(value == self.bound for value in self.values)
        return self.median <= self.bound if self.better == "lower" else self.median >= self.bound

    @property
    def figure(self) -> str:
        sign = {"lower": "<=", "higher": ">=", "equal": "="}[self.better]
        return "" if self.bound is None else f"{sign} {number(self.bound)} {self.unit}".rstrip()

    def to_json(self) -> dict[str, Any]:
        values = {"median": self.median, "low": min(self.values), "high": max(self.values)} if self.values else {}
        return {**asdict(self), **values, "reached": self.reached}


def number(value: float) -> str:
    """Three significant digits, thousands as k, millions as M."""
    for least, size, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Median and range: `1.31 (1.28-1.40)`."""
    if not values:
        return "void"
    low, middle, high = min(values), median(values), max(values)
    return number(middle) if low == high else f"{number(middle)} ({number(low)}-{number(high)})"
