"""Draws tokens from a model's output. Pure NumPy: what is drawn depends on the seed and the outputs alone.

Each sampler has a generator of its own, PCG64, and takes one number from it for each token, so that what runs beside it
never matters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Sampler:
    """`temperature` 0 takes the likeliest token, 1 the model's own odds; `top_k` leaves only the likeliest ones."""

    def __init__(self, seed: int, *, temperature: float = 1.0, top_k: int | None = None) -> None:
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._temperature = temperature
        self._top_k = top_k

    def draw(self, logits: NDArray[np.float32]) -> int:
        """A token, the logits being `(V,)`. Of equally likely ones, those of the lower id count as likelier."""
        number = self._random.random()
        if self._temperature == 0:
            return int(logits.argmax())
        tokens = np.arange(len(logits))
        if self._top_k is not None and self._top_k < len(logits):
            tokens = np.argsort(-logits, kind="stable")[: self._top_k]
        kept = logits[tokens].astype(np.float64)
        with np.errstate(over="ignore"):  # to minus infinity, whose weight is 0
            weights = np.exp((kept - kept.max()) / self._temperature)
        sums = weights.cumsum()
        # the product may round up to the whole sum, and what lies beyond the last weight is no choice
        choice = min(int(np.searchsorted(sums, number * sums[-1], side="right")), int(weights.nonzero()[0][-1]))
        return int(tokens[choice])


def log_odds(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of the same odds; a token without any is never drawn."""
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


class Stops:
    """Tells when a text has come to one of its ends: a token, or a string, which may lie over several tokens."""

    def __init__(self, ends: Sequence[str | int], vocabulary: Sequence[str]) -> None:
        self._tokens = {end for end in ends if isinstance(end, int)}
        self._texts = [end for end in ends if isinstance(end, str)]
        self._vocabulary = vocabulary
        self._longest = max(map(len, self._texts), default=0)
        self._tail = ""

    def met_by(self, token: int) -> bool:
        """Is the text at an end with this next token?"""
        if not self._texts:
            return token in self._tokens
        piece = self._vocabulary[token]
        # as much of what came before as an end that the new piece completes may reach back
        before = self._tail[max(0, len(self._tail) - self._longest + 1) :]
        self._tail = before + piece
        return token in self._tokens or any(text in self._tail for text in self._texts)
