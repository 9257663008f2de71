"""Which requests of a run may not keep their result, and why. Pure."""

from __future__ import annotations

from service.engine.model_runner import RunOutput
from service.engine.request import Batch
from service.engine.state_arena import Arena, non_finite_rows
from service.errors import CarouselError, DeadlineExceeded, Draining, EngineFailure, NonFiniteResult


def find_failures(batch: Batch, output: RunOutput, rows: Arena, now: float) -> dict[int, CarouselError]:
    """Row -> error: for callers who left, deadlines that passed, and results that are not finite. Mostly empty."""
    failures: dict[int, CarouselError] = {}
    for row, request in enumerate(batch.requests):
        if request.gone:
            failures[row] = caller_gone()
        elif request.deadline is not None and request.deadline < now:
            failures[row] = late()
    for row in (*non_finite_rows(output.outputs, 0), *rows.non_finite(output.states)):
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


def non_finite(first: int, last: int) -> NonFiniteResult:
    """What to tell of a row that went wrong between these steps of its call."""
    return NonFiniteResult(
        f"The model's output or state is NaN or infinite between steps {first} and {last} of this call; the state is "
        "what it was before the call. Check the inputs for values far outside what the model was trained on.",
        last_good_step=first,
    )
