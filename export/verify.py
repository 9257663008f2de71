"""Proves that a model file answers as its checkpoint does, and that it keeps what the service promises.

Between torch and onnxruntime a difference of rounding is allowed; between two ways of running the same file on
onnxruntime's CPU, none. A file in int8 declares that rows and steps which run together touch each other: how much is
measured and told, and what must hold is that it answers about as the checkpoint does and loses little of its figure.
Array legend: B rows, T steps, F features, L layers, D directions, H hidden, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from export.session import Array, Arrays, Session
from models.sequence_model import SequenceModel
from models.tasks import TASKS

PARITY_LENGTHS = (1, 2, 3, 7, 16, 64, 512)
PARITY_BATCHES = (1, 2, 5, 32)
PARITY_LIMIT = 1e-4
"""Of |torch - onnxruntime| / (1 + |torch|). Untrained models stay below 5e-7; trained ones amplify rounding over 512
random steps (6e-6 was seen)."""
INT8_PARITY_LIMIT = 0.1
"""Root mean square of the same, of each tensor of each run. Untrained models stay below 0.01; trained ones, from
random states that training never showed them, reach 0.045."""
METRIC_LIMIT = 1e-4
"""Relative, or of 0.01 for figures below that; one more wrong answer among fewer than 10,000 is above it."""
CUTS = ([64, 32], [1, 2, 4, 8, 16, 32, 33], [13] * 7 + [5], [95, 1])
"""Ways to cut 96 steps."""
MAX_METRIC_LOSS = 0.02
"""Of int8, relative to the checkpoint's figure, or to 0.01 for figures below that."""
THREADS = (1, 2)
NOT_PROMISED = math.inf


@dataclass(frozen=True)
class Check:
    """One property: the largest difference that was seen, and the largest that is allowed."""

    name: str
    scope: str
    worst: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.worst <= self.limit  # NaN fails


@dataclass(frozen=True)
class Report:
    checks: tuple[Check, ...]
    left_out: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def show(self, console: Console) -> None:
        table = Table("check", "over", "difference", "allowed", "")
        for check in self.checks:
            allowed = {0: "exact", NOT_PROMISED: "not promised"}.get(check.limit, f"{check.limit:.0e}")
            worst = "0" if check.worst == 0 else f"{check.worst:.1e}"
            table.add_row(check.name, check.scope, worst, allowed, "ok" if check.passed else "[bold red]FAILED[/]")
        console.print(table)
        for line in self.left_out:
            console.print(f"left out: {line}")


@dataclass(frozen=True)
class TaskMetric:
    """A task's figure: how to measure it on the test split, and what the checkpoint says it is."""

    name: str
    expected: float
    evaluate: Callable[[Callable[[Arrays], Arrays]], float]
    figure: dict[str, Any] = field(default_factory=dict)
    """As the checkpoint has it: name, value, unit, better, references."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> TaskMetric | None:
        """Of a checkpoint's `info`; None when it names no registered task, or has no test figure of it."""
        task = TASKS.get(info.get("task_name", ""))
        for figure in info.get("metrics") or []:
            if task and figure["name"] == task.metric_name and figure.get("split", "test") == "test":
                return cls(task.metric_name, figure["value"], task.evaluate, figure)
        return None


def verify(
    model: SequenceModel,
    data: bytes,
    metric: TaskMetric | None = None,
    seed: int = 0,
    max_metric_loss: float = MAX_METRIC_LOSS,
) -> Report:
    """Check the file `data` against the model it was made from, with random inputs and random states.

    `max_metric_loss`: how much worse a file in int8 may be, relative to the figure.
    """
    inputs = _Inputs(model, np.random.default_rng(seed))
    sessions = [Session(data, threads) for threads in THREADS]
    exact = sessions[0].manifest["batch_invariant"]
    limit = 0.0 if exact else NOT_PROMISED
    checks = [_parity(model, sessions[0], inputs, exact)]
    left_out = []
    if model.config.bidirectional:
        left_out.append("chunks and single steps; a bidirectional model reads whole sequences only")
    else:
        checks += [_chunked(sessions, inputs, limit), _chained(sessions, inputs, limit)]
    fresh = [Session(data, threads) for threads in THREADS]
    checks += [_alone(sessions, inputs, limit), _reset(sessions, fresh, inputs, beside_others=exact)]
    if metric is None:
        left_out.append("the metric; the checkpoint names no task and test figure to compare with")
    elif exact:
        checks.append(_metric(sessions[-1], metric))
    else:
        checks.append(_metric_loss(sessions[-1], metric, max_metric_loss))
    return Report(tuple(checks), tuple(left_out))


class _Inputs:
    """Random x and states of the model's shapes and scale."""

    def __init__(self, model: SequenceModel, random: np.random.Generator) -> None:
        self.model, self.random = model, random

    def x(self, B: int, T: int) -> Array:
        """(B, T, F) float32 spread as the training data were, or (B, T) int64."""
        config = self.model.config
        if config.embedding_size is not None:
            return self.random.integers(config.input_size, size=(B, T))
        mean, std = self.model.input_mean.numpy(), self.model.input_std.numpy()
        noise = self.random.standard_normal((B, T, config.input_size))
        return (mean + std * noise).astype(np.float32)

    def states(self, B: int) -> list[Array]:
        """Non-zero states, (L*D, B, H) each."""
        shapes = [state.shape for state in self.model.zero_state(B)]
        return [np.tanh(self.random.standard_normal(shape)).astype(np.float32) for shape in shapes]


def _parity(model: SequenceModel, session: Session, inputs: _Inputs, exact: bool) -> Check:
    differences = []
    for T in PARITY_LENGTHS:
        for B in PARITY_BATCHES:
            x, states = inputs.x(B, T), inputs.states(B)
            with torch.no_grad(), _one_torch_thread():
                expected = [want.numpy() for want in model(torch.from_numpy(x), *map(torch.from_numpy, states))]
            for want, got in zip(expected, session.run(x, states), strict=True):
                relative = np.abs(want - got) / (1 + np.abs(want))
                differences.append(_largest(relative) if exact else float(np.sqrt(np.mean(relative**2))))
    scope = f"T 1 to {max(PARITY_LENGTHS)}, B 1 to {max(PARITY_BATCHES)}"
    if exact:
        return Check("torch == onnxruntime", scope, _largest(differences), PARITY_LIMIT)
    return Check("torch ~ onnxruntime", f"{scope}, rms", _largest(differences), INT8_PARITY_LIMIT)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """OpenMP's threads spin for each other at every step: on busy cores, 45 s instead of 0.3 s for T=512."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _chunked(sessions: Sequence[Session], inputs: _Inputs, limit: float) -> Check:
    x, states = inputs.x(5, 96), inputs.states(5)
    differences = []
    for session in sessions:
        whole = session.run(x, states)
        differences += [_difference(whole, session.run_chunks(x, states, sizes)) for sizes in CUTS]
    return Check("whole == chunked", f"B 5, T 96 cut {len(CUTS)} ways", _largest(differences), limit)


def _chained(sessions: Sequence[Session], inputs: _Inputs, limit: float) -> Check:
    x, states = inputs.x(1, 1000), inputs.states(1)
    singles = [1] * 1000
    differences = [_difference(session.run(x, states), session.run_chunks(x, states, singles)) for session in sessions]
    return Check("whole == single steps", "B 1, T 1000", _largest(differences), limit)


def _alone(sessions: Sequence[Session], inputs: _Inputs, limit: float) -> Check:
    rows, differences = 33, []
    for T in (1, 4, 17):
        x, states = inputs.x(rows, T), inputs.states(rows)
        for session in sessions:
            runs = [session.run(x[b : b + 1], [state[:, b : b + 1] for state in states]) for b in range(rows)]
            y, *final = (
                np.concatenate(parts, axis=min(place, 1)) for place, parts in enumerate(zip(*runs, strict=True))
            )
            for B in range(1, rows + 1):
                batched = session.run(x[:B], [state[:, :B] for state in states])
                differences.append(_difference([y[:B], *(state[:, :B] for state in final)], batched))
    return Check("batched == alone", f"B 1 to {rows}, T 1, 4, 17", _largest(differences), limit)


def _reset(used: Sequence[Session], fresh: Sequence[Session], inputs: _Inputs, beside_others: bool) -> Check:
    """A zero state in a session that has run much, alone and beside rows with state, is as good as a new session."""
    x, states = inputs.x(4, 16), inputs.states(4)
    for state in states:
        state[:, 0] = 0
    zeros = [state[:, :1] for state in states]
    differences = []
    for used_session, fresh_session in zip(used, fresh, strict=True):
        expected = fresh_session.run(x[:1], zeros)
        y, *final = used_session.run(x, states)
        if beside_others:
            differences.append(_difference(expected, [y[:1], *(state[:, :1] for state in final)]))
        differences.append(_difference(expected, used_session.run(x[:1], zeros)))
    scope = "alone and beside others" if beside_others else "alone"
    return Check("reset == fresh", scope, _largest(differences), 0.0)


def _metric(session: Session, metric: TaskMetric) -> Check:
    measured = metric.evaluate(session.predict)
    difference = abs(measured - metric.expected) / max(abs(metric.expected), 0.01)
    return Check("test figure == trained", f"{metric.name} {measured:.4g}", difference, METRIC_LIMIT)


def _metric_loss(session: Session, metric: TaskMetric, limit: float) -> Check:
    """How much worse than trained; a gain is no loss."""
    measured = metric.evaluate(session.predict)
    worse = metric.expected - measured if metric.figure["better"] == "higher" else measured - metric.expected
    loss = worse / max(abs(metric.expected), 0.01)
    scope = f"{metric.name} {measured:.4g}, was {metric.expected:.4g}"
    return Check("test figure ~ trained", scope, 0.0 if loss < 0 else loss, limit)


def _difference(first: Iterable[Array], second: Iterable[Array]) -> float:
    """0 only where all values are equal; NaN where one is NaN or infinite."""
    return _largest([_largest(np.abs(a - b)) for a, b in zip(first, second, strict=True)])


def _largest(values: Any) -> float:
    return float(np.max(values))  # unlike Python's max, it lets a NaN win
