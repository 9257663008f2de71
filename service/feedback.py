"""What a model of numbers is fed when it goes on by itself. Pure: the manifest says where each feature comes from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.model_spec import Cycle, FromOutput, Given, ModelSpec

Values = NDArray[np.float64]


class Feedback:
    """Makes the inputs after `last`, `(F,)`, from the outputs that the model answers them with."""

    def __init__(self, spec: ModelSpec, last: NDArray[np.float32], steps: int, future: Mapping[int, Values]) -> None:
        """`future` is what the caller knows: feature -> its values in the next `steps` steps, `(steps,)`."""
        assert spec.feedback is not None
        self._sources = spec.feedback
        self._last = last.astype(np.float64)
        self._future = future
        self._steps = steps
        self._done = 0

    @property
    def ended(self) -> bool:
        return self._done == self._steps

    def follow(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """The next inputs, `(n, F)`, after the output `(O,)`: as many as it looks ahead, and not more than are left."""
        ahead = next(len(source.places) for source in self._sources if isinstance(source, FromOutput))
        begin, end = self._done, min(self._done + ahead, self._steps)
        rows = np.repeat(self._last[None], end - begin, axis=0)
        for feature, source in enumerate(self._sources):
            if feature in self._future:
                rows[:, feature] = self._future[feature][begin:end]
            elif isinstance(source, FromOutput):
                rows[:, feature] = output[list(source.places[: end - begin])]
            elif isinstance(source, Cycle):
                rows[:, feature] = self._turned(feature, source, np.arange(begin + 1, end + 1))
        self._done = end
        return rows.astype(np.float32)

    def _turned(self, feature: int, source: Cycle, steps: NDArray[np.intp]) -> Values:
        here, other = self._last[feature], self._last[source.other]
        sine, cosine = (here, other) if source.kind == "sine" else (other, here)
        # from the last given point each time: so no rounding adds up
        angle = np.arctan2(sine, cosine) + 2 * np.pi * steps / source.period_steps
        turned: Values = np.hypot(sine, cosine) * (np.sin(angle) if source.kind == "sine" else np.cos(angle))
        return turned


def check_future(spec: ModelSpec, future: Mapping[str, Values], steps: int) -> dict[int, Values]:
    """What the caller says of features to come, by name or place -> by place. Raises InvalidInput."""
    sources = spec.feedback or ()
    names = list(spec.input.labels or map(str, range(len(sources))))
    free = [name for name, source in zip(names, sources, strict=True) if not isinstance(source, FromOutput)]
    found: dict[int, Values] = {}
    for name, array in future.items():
        if name not in free:
            raise InvalidInput(
                f"future_inputs: {name[:60]!r} is none of the features that a caller may know ahead.",
                expected=free,
                received=name[:60],
            )
        if len(array) != steps or not (np.abs(array) <= np.finfo(np.float32).max).all():
            raise InvalidInput(
                f"future_inputs.{name}: expected {steps} finite float32 numbers, one a step; got {len(array)}.",
                place=f"future_inputs.{name}",
                expected=steps,
                received=len(array),
            )
        found[names.index(name)] = array
    missing = [names[place] for place, source in enumerate(sources) if isinstance(source, Given) and place not in found]
    if missing:
        raise InvalidInput(
            f"future_inputs: {', '.join(missing)} must be given: only the caller knows what comes.", expected=missing
        )
    return found
