"""Proves that a model file answers as its checkpoint does, and that it keeps what the service promises.

`python -m export.verify CHECKPOINT MODEL_FILE` exits with 1 when a check fails. Between torch and onnxruntime a
difference of rounding is allowed; between two ways of running the same file on onnxruntime's CPU, none.
Array legend: B rows, T steps, F features, L layers, D directions, H hidden, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.table import Table

from export.session import Array, Arrays, Session
from models.sequence_model import SequenceModel

PARITY_LENGTHS = (1, 2, 3, 7, 16, 64, 512)
PARITY_BATCHES = (1, 2, 5, 32)
PARITY_LIMIT = 1e-4
"""Of |torch - onnxruntime| / (1 + |torch|): float32 rounds at 6e-8, and 512 steps carry it along."""
METRIC_LIMIT = 1e-4
"""Relative; one more wrong answer among fewer than 10,000 is above it."""
THREADS = (1, 2)


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

    def table(self) -> Table:
        table = Table("check", "over", "largest difference", "allowed", "", title_justify="left")
        for check in self.checks:
            allowed = "exact" if check.limit == 0 else f"{check.limit:.1e}"
            worst = "0" if check.worst == 0 else f"{check.worst:.1e}"
            table.add_row(check.name, check.scope, worst, allowed, "ok" if check.passed else "[bold red]FAILED[/]")
        for line in self.left_out:
            table.add_row(line, "", "", "", "left out")
        return table


@dataclass(frozen=True)
class TestMetric:
    """A task's figure: how to measure it on a test split, and what the checkpoint says it is."""

    name: str
    expected: float
    evaluate: Callable[[Callable[[Arrays], Arrays]], float]


def verify(
    model: SequenceModel,
    data: bytes,
    metric: TestMetric | None = None,
    seed: int = 0,
    threads: tuple[int, ...] = THREADS,
) -> Report:
    """Check the file `data` against the model it was made from, with random inputs and random states."""
    inputs = _Inputs(model, np.random.default_rng(seed))
    checks = [_parity(model, Session(data), inputs)]
    exact = [_alone, _reset] if model.config.bidirectional else [_chunked, _chained, _alone, _reset]
    checks += [check(partial(Session, data), inputs, threads) for check in exact]
    left_out = []
    if model.config.bidirectional:
        left_out.append("whole == chunked, chained: a bidirectional model reads the whole sequence")
    if metric is None:
        left_out.append("metric: the checkpoint names no task and figure to compare with")
    else:
        difference = abs(metric.evaluate(Session(data, threads=max(threads)).predict) - metric.expected)
        relative = difference / max(abs(metric.expected), 1e-9)
        checks.append(
            Check(f"{metric.name} == checkpoint's", f"test split, {metric.expected:.6g}", relative, METRIC_LIMIT)
        )
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


MakeSession = Callable[..., Session]


def _parity(model: SequenceModel, session: Session, inputs: _Inputs) -> Check:
    worst = 0.0
    for T in PARITY_LENGTHS:
        for B in PARITY_BATCHES:
            x, states = inputs.x(B, T), inputs.states(B)
            with torch.no_grad():
                expected = model(torch.from_numpy(x), *map(torch.from_numpy, states))
            for want, got in zip(expected, session.run(x, states), strict=True):
                reference = want.numpy()
                worst = max(worst, _largest(np.abs(reference - got) / (1 + np.abs(reference))))
    scope = f"T 1 to {max(PARITY_LENGTHS)}, B 1 to {max(PARITY_BATCHES)}, y and states"
    return Check("torch == onnxruntime", scope, worst, PARITY_LIMIT)


def _chunked(make_session: MakeSession, inputs: _Inputs, threads: tuple[int, ...]) -> Check:
    B, T, worst = 5, 96, 0.0
    x, states = inputs.x(B, T), inputs.states(B)
    for session in _sessions(make_session, threads):
        whole = session.run(x, states)
        for sizes in ([64, 32], [1, 2, 4, 8, 16, 32, 33], [13] * 7 + [5], [95, 1], [48, 48]):
            worst = max(worst, _difference(whole, session.run_chunks(x, states, sizes)))
    return Check("whole == chunked", f"T {T}, 5 ways to cut, {_said(threads)}", worst, 0.0)


def _chained(make_session: MakeSession, inputs: _Inputs, threads: tuple[int, ...]) -> Check:
    x, states, worst = inputs.x(1, 1000), inputs.states(1), 0.0
    for session in _sessions(make_session, threads):
        worst = max(worst, _difference(session.run(x, states), session.run_chunks(x, states, [1] * 1000)))
    return Check("1,000 single steps == whole", f"B 1, {_said(threads)}", worst, 0.0)


def _alone(make_session: MakeSession, inputs: _Inputs, threads: tuple[int, ...]) -> Check:
    rows, worst = 33, 0.0
    for T in (1, 4, 17):
        x, states = inputs.x(rows, T), inputs.states(rows)
        for session in _sessions(make_session, threads):
            alone = [session.run(x[b : b + 1], [s[:, b : b + 1] for s in states]) for b in range(rows)]
            for B in range(1, rows + 1):
                batched = session.run(x[:B], [s[:, :B] for s in states])
                for b in range(B):
                    row = [batched[0][b : b + 1], *(s[:, b : b + 1] for s in batched[1:])]
                    worst = max(worst, _difference(alone[b], row))
    return Check("batched == alone", f"B 1 to {rows}, T 1, 4, 17, {_said(threads)}", worst, 0.0)


def _reset(make_session: MakeSession, inputs: _Inputs, threads: tuple[int, ...]) -> Check:
    """A zero state, in a session that has run much and beside rows that carry state, is as good as a new session."""
    x, worst = inputs.x(4, 16), 0.0
    states = inputs.states(4)
    for state in states:
        state[:, 0] = 0
    fresh_row = [state[:, :1] for state in states]
    for count in threads:
        used = make_session(threads=count)
        for _ in range(3):
            used.run(inputs.x(3, 9), inputs.states(3))
        fresh = make_session(threads=count).run(x[:1], fresh_row)
        worst = max(worst, _difference(fresh, used.run(x[:1], fresh_row)))
        beside = used.run(x, states)
        worst = max(worst, _difference(fresh, [beside[0][:1], *(s[:, :1] for s in beside[1:])]))
    return Check("reset == fresh", f"alone and beside others, {_said(threads)}", worst, 0.0)


def _sessions(make_session: MakeSession, threads: tuple[int, ...]) -> Iterator[Session]:
    return (make_session(threads=count) for count in threads)


def _said(threads: tuple[int, ...]) -> str:
    return f"{' and '.join(map(str, threads))} thread{'s' if threads != (1,) else ''}"


def _difference(first: list[Array], second: list[Array]) -> float:
    """0 only where all bits agree; NaN where either is NaN, which is no agreement."""
    return max(
        0.0
        if a.tobytes() == b.tobytes() and np.isfinite(a).all()
        else _largest(np.abs(a - b)) or np.finfo(np.float32).tiny
        for a, b in zip(first, second, strict=True)
    )


def _largest(values: Any) -> float:
    """Like max, but a NaN wins."""
    return float(np.max(values))
