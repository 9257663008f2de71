"""A canonical file on the doctor's table: inputs to try it with, and its answers whole, in pieces and in batches.

Array legend: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from export.adoption.plan import AdoptionError, Array, Bounds
from export.metadata import Document
from export.session import Session

SCALES = (0.1, 1.0, 10.0)
"""Of random inputs: what a model was made for is not known."""
WHOLE_SCALE = 10
"""Whole numbers are so much larger."""
TRIED_STEPS = 32
MOST_TOKENS = 1 << 20
_USUAL_TOKENS = 256


class NotFinite(AdoptionError):
    """A run gave NaN or infinity; NaN stands also for a whole number that float32 has not."""


class _Watched(Session):
    def run(self, x: Array, states: Sequence[Array]) -> list[Array]:
        results = super().run(x, states)
        if not all(np.isfinite(values).all() for values in results):
            raise NotFinite(
                "its answers are not finite, or whole numbers beyond float32; bring inputs that it was made for: "
                "--sample FILE.npy"
            )
        return results


class Patient:
    """Runs on one thread and on two, as servers do."""

    def __init__(self, data: bytes, sample: Array | None = None, seed: int = 0, bounds: Sequence[Bounds] = ()) -> None:
        """`bounds`: of each place of a step."""
        self.sessions = [_Watched(data, threads) for threads in (1, 2)]
        self.session = self.sessions[0]
        manifest: Document = self.session.manifest
        self.input, self.states = manifest["inputs"][0], manifest["states"]
        self._step = tuple(manifest["inputs"][0]["shape"][2:])
        self._bounds = bounds
        self._random = np.random.default_rng(seed)
        self._sample = self._check_sample(sample)
        self.token_counts = self._find_token_counts() if self.input["dtype"] == "int64" else None
        self._scales: tuple[float, ...] = SCALES
        if sample is None and self.token_counts is None:
            self._scales = self._find_scales()

    def x(self, B: int, T: int) -> Array:
        """(B, T, ...): pieces of the sample, or random values, each row of another size."""
        if self._sample is not None:
            places = self._random.integers(len(self._sample), size=B)
            pieces: Array = np.stack([self._sample.take(np.arange(p, p + T), axis=0, mode="wrap") for p in places])
            return pieces
        if self.token_counts is not None:
            most = [min(count or _USUAL_TOKENS, self._most(n) + 1) for n, count in enumerate(self.token_counts)]
            tokens: Array = self._random.integers(most if self._step else most[0], size=(B, T, *self._step))
            return tokens
        noise = self._random.standard_normal((B, T, *self._step))
        scales = self._random.choice(self._scales, size=(B, 1, *(1 for _ in self._step)))
        values = (noise * scales).reshape(B, T, -1)
        for place, limits in enumerate(self._bounds):
            if limits is not None:
                values[..., place] = np.rint(np.clip(values[..., place] * WHOLE_SCALE, *limits))
        array: Array = values.astype(np.float32).reshape(B, T, *self._step)
        return array

    def begin(self, B: int) -> list[Array]:
        """Zeros, but for what must be given when a sequence begins: that is random."""
        states = self.session.zero_states(B)
        for spec, state in zip(self.states, states, strict=True):
            if spec.get("required"):
                state[:] = self._random.standard_normal(state.shape)
        return states

    def rows(self, states: Sequence[Array], begin: int, end: int) -> list[Array]:
        """Of batched states, those of some rows."""
        axes = [spec["shape"].index("batch") for spec in self.states]
        return [state.take(range(begin, end), axis=axis) for state, axis in zip(states, axes, strict=True)]

    def _check_sample(self, sample: Array | None) -> Array | None:
        if sample is None:
            return None
        if sample.shape[1:] != self._step or not len(sample):
            raise AdoptionError(f"the sample is {list(sample.shape)}; expected steps of {list(self._step)}")
        return sample.astype(self.input["dtype"])

    def _find_scales(self) -> tuple[float, ...]:
        """Those that give finite answers, for as many steps as will be tried. Raises NotFinite where none does."""
        good = []
        for scale in SCALES:
            self._scales = (scale,)
            x, states = self.x(1, TRIED_STEPS), self.begin(1)
            try:
                for step in range(TRIED_STEPS):
                    _, *states = self.session.run(x[:, step : step + 1], states)
                good.append(scale)
            except NotFinite:
                if not good and scale == SCALES[-1]:
                    raise
        return tuple(good)

    def _find_token_counts(self) -> list[int | None]:
        """Of each column of tokens, how many there are: the first id that the file refuses to look up."""
        columns = range(int(np.prod(self._step)))
        return [self._count_tokens(column) for column in columns]

    def _count_tokens(self, column: int) -> int | None:
        most = self._most(column)
        if self._takes(column, most):
            return None
        good, bad = 0, most
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self._takes(column, middle) else (good, middle)
        return bad

    def _most(self, column: int) -> int:
        """The highest id that is tried."""
        limits = self._bounds[column] if self._bounds else None
        return MOST_TOKENS if limits is None else min(MOST_TOKENS, limits[1])

    def _takes(self, column: int, token: int) -> bool:
        tokens = np.zeros((1, 1, int(np.prod(self._step))), np.int64)
        tokens[..., column] = token
        try:
            self.session.run(tokens.reshape(1, 1, *self._step), self.begin(1))
        except NotFinite:
            return True
        except Exception:  # whatever onnxruntime raises, it says that there is no such token
            return False
        return True


def difference(first: Sequence[Array], second: Sequence[Array]) -> float:
    """The largest of |a - b| / (1 + |a|): 0 only where all are equal, NaN where one is not finite."""
    worst: list[Any] = [np.max(np.abs(a - b) / (1 + np.abs(a)), initial=0) for a, b in zip(first, second, strict=True)]
    return float(np.max(worst, initial=0))


def rms(first: Array, second: Array) -> float:
    """Root mean square of |a - b| / (1 + |a|)."""
    return float(np.sqrt(np.mean((np.abs(first - second) / (1 + np.abs(first))) ** 2)))
