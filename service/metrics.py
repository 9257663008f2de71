"""The numbers on /metrics, in Prometheus' units: seconds, bytes, counts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from time import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client import generate_latest as _generate_latest
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_MODEL = ["model", "version"]

END_REASONS = ("deleted", "expired", "version_unloaded", "damaged")
"""Why sequences end."""


class Series:
    """One histogram's counts. prometheus_client's own takes a lock for each number; a step is told of three times."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def observe_all(self, values: Sequence[float]) -> None:
        """What came together mostly lies together."""
        if values:
            first, last = bisect_left(self.bounds, min(values)), bisect_left(self.bounds, max(values))
            self.total += sum(values)
            if first == last:
                self.counts[first] += len(values)
            else:
                for value in values:
                    self.counts[bisect_left(self.bounds, value)] += 1


class Histogram(Collector):
    """A histogram by labels, read by prometheus_client when the page is asked for. For one thread."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], *, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labels, self._buckets = name, text, labels, buckets
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: str) -> Series:
        return self._series.setdefault(values, Series(self._buckets))

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        bounds = [*map(str, self._buckets), "+Inf"]
        for values, series in self._series.items():
            counts = zip(bounds, map(float, accumulate(series.counts)), strict=True)
            family.add_metric(values, list(counts), series.total)
        return [family]

    def describe(self) -> Iterable[Metric]:
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]


class Metrics:
    """One set of counters a process; each app has its own, so that tests do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._add_calls()
        self._add_streams()
        self._add_runs()
        self._add_sequences()
        self._add_models()

    def sequences_of(self, model: str) -> dict[str, Any]:
        """How many sequences of a model are held, were begun, and ended for which reason."""
        ended = _samples(self.sequences_ended, model, "reason")
        return {
            "active": int(sum(_samples(self.sequences, model, "tier").values())),
            "created": int(sum(_samples(self.sequences_created, model).values())),
            "ended": {reason: int(ended.get(reason, 0)) for reason in END_REASONS},
            "state_bytes": int(sum(_samples(self.state_bytes, model, "tier").values())),
        }

    def render(self) -> bytes:
        """The page that Prometheus reads."""
        return _generate_latest(self.registry)

    def _add_calls(self) -> None:
        self.http_requests = self._counter(
            "carousel_http_requests_total", "Answers, by route, method and status.", ["route", "method", "status"]
        )
        self.http_seconds = self._histogram(
            "carousel_http_request_seconds",
            "Whole time of a request, from the first byte read to the last byte written.",
            ["route"],
        )
        self.errors = self._counter("carousel_errors_total", "Errors answered, by code.", ["code"])

    def _add_streams(self) -> None:
        self.streams = self._gauge("carousel_streams", "WebSockets open.")
        self.stream_frames = self._counter("carousel_stream_frames_total", "Frames read, text or binary.", ["form"])
        self.stream_records = self._counter(
            "carousel_stream_records_total", "Records read: steps, opens and deletes.", ["form"]
        )

    def _add_runs(self) -> None:
        self.queue_seconds = self._histogram(
            "carousel_queue_seconds", "From arrival at the engine to the first run.", _MODEL
        )
        self.run_seconds = self._histogram(
            "carousel_run_seconds", "One run of the model: gather, run, scatter.", _MODEL
        )
        self.batch_rows = self._histogram("carousel_batch_rows", "Rows that ran together.", _MODEL, _ROWS)
        self.steps = self._counter("carousel_steps_total", "Steps run.", _MODEL)
        self.queued_requests = self._gauge("carousel_queued_requests", "Requests waiting or running.", _MODEL)
        self.commit_seconds = self._histogram(
            "carousel_commit_seconds",
            "One commit of the ends of calls to the state store, with what follows until they are answered.",
            _MODEL,
        )

    def _add_sequences(self) -> None:
        self.sequences = self._gauge(
            "carousel_sequences",
            "Sequences, by where their state is at hand: in the arena, or only in the store.",
            ["model", "tier"],
        )
        self.state_bytes = self._gauge("carousel_state_bytes", "Bytes of state of those sequences.", ["model", "tier"])
        self.sequences_created = self._counter("carousel_sequences_created_total", "Sequences begun.", ["model"])
        self.sequences_ended = self._counter(
            "carousel_sequences_ended_total", "Sequences ended, by reason.", ["model", "reason"]
        )

    def _add_models(self) -> None:
        self.models_ready = self._gauge("carousel_models_ready", "Model versions ready to serve.")
        self.models_failed = self._gauge("carousel_models_failed", "Model versions that could not be loaded.")

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float] = _SECONDS) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


def _samples(metric: Counter | Gauge, model: str, by: str = "model") -> dict[str, float]:
    """A model's values by one of the labels."""
    return {
        sample.labels[by]: sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.labels["model"] == model and not sample.name.endswith("_created")
    }


class Tally:
    """How often, and how long in all."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def add(self, count: int, seconds: float) -> None:
        self.count += count
        self.seconds += seconds


class RunTallies:
    """Runs of one number of rows: what went before the model, the model itself, and what came after."""

    __slots__ = ("after", "before", "model")

    def __init__(self) -> None:
        self.before, self.model, self.after = Tally(), Tally(), Tally()


class EngineMetrics:
    """The engine's share of the metrics, with the labels of one model version bound once."""

    def __init__(self, metrics: Metrics, model: str, version: int) -> None:
        labels = (model, str(version))
        self.queue_seconds = metrics.queue_seconds.labels(*labels)
        self.commit_seconds = metrics.commit_seconds.labels(*labels)
        self.queued = metrics.queued_requests.labels(*labels)
        self._run_seconds = metrics.run_seconds.labels(*labels)
        self._batch_rows = metrics.batch_rows.labels(*labels)
        self._steps = metrics.steps.labels(*labels)
        self.succeeded, self.failed = Tally(), Tally()
        """Requests, from arrival to end."""
        self.runs: dict[int, RunTallies] = {}
        """By the rows that ran together."""
        self.last_run_at = 0.0
        """Seconds since the epoch."""

    @property
    def num_runs(self) -> int:
        return sum(self._batch_rows.counts)

    def observe_run(self, rows: int, steps: int, seconds: float, before: float, after: float) -> None:
        """A run took `seconds`, and the work around it `before` and `after` it."""
        self._run_seconds.observe(seconds)
        self._batch_rows.observe(rows)
        self._steps.inc(rows * steps)
        if rows not in self.runs:
            self.runs[rows] = RunTallies()
        tallies = self.runs[rows]
        tallies.before.add(1, before)
        tallies.model.add(1, seconds)
        tallies.after.add(1, after)
        self.last_run_at = time()
