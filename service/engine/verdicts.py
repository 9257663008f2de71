"""Which requests of a run may not keep their result, and why. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine.model_runner import RunOutput
from service.engine.request import Batch
from service.errors import CarouselError, DeadlineExceeded, Draining, EngineFailure, NonFiniteResult
from service.model_spec import StateSpec


def find_failures(batch: Batch, output: RunOutput, states: Sequence[StateSpec], now: float) -> dict[int, CarouselError]:
    """Row -> error: for callers who left, deadlines that passed, and results that are not finite. Mostly empty."""
    failures: dict[int, CarouselError] = {}
    for row, request in enumerate(batch.requests):
        if request.gone:
            failures[row] = caller_gone()
        elif request.deadline is not None and request.deadline < now:
            failures[row] = late()
    tensors = [(output.outputs, 0), *((s, spec.batch_axis) for s, spec in zip(output.states, states, strict=True))]
    for tensor, axis in tensors:
        for row in non_finite_rows(tensor, axis):
            done = batch.requests[row].steps_done
            failures.setdefault(row, non_finite(done, done + batch.steps))
    return failures


def caller_gone() -> EngineFailure:
    """Ends a request whose caller reads no answer any more."""
    return EngineFailure("The caller is gone.")


def late() -> DeadlineExceeded:
    return DeadlineExceeded("The deadline passed; nothing was kept, and the state is what it was before the call.")


def shut_down() -> Draining:
    return Draining("The server shut down before this ran. Send it again.", retry_after=1)


def non_finite_rows(tensor: NDArray[np.float32], axis: int) -> list[int]:
    """Rows, along `axis`, in which a number is NaN or infinite."""
    finite = np.isfinite(tensor)
    if np.logical_and.reduce(finite, axis=None):  # what `all` does, by way of more Python
        return []
    others = tuple(n for n in range(tensor.ndim) if n != axis)
    return [int(row) for row in np.flatnonzero(~finite.all(axis=others))]


def non_finite(first: int, last: int) -> NonFiniteResult:
    """What to tell of a row that went wrong between these steps of its call."""
    return NonFiniteResult(
        f"The model's output or state is NaN or infinite between steps {first} and {last} of this call; the state is "
        "what it was before the call. Check the inputs for values far outside what the model was trained on.",
        last_good_step=first,
    )
