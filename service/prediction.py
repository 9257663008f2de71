"""A call whose state the caller carries: many sequences of any lengths, answered together or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from service.engine.engine import Engine
from service.engine.request import Array, Outputs, Result, State
from service.errors import CarouselError


@dataclass(slots=True)
class Row:
    """One sequence of the call: `inputs` `(T, F)` or `(T,)`; `state` None begins from zeros."""

    inputs: Array
    state: State | None = None
    step: int = 0
    """Steps that `state` has behind it."""


async def predict(
    engine: Engine,
    rows: Sequence[Row],
    *,
    outputs: Outputs,
    return_state: bool,
    deadline: float | None = None,
    tenant: str = "",
    place: str = "sequences[{}]",
) -> list[Result]:
    """Results in the order of `rows`. The first row that fails fails the call, its index in the error's `index`.

    `place` is what its message calls the row.
    """
    engine.admit(max(len(row.inputs) for row in rows))
    work = [
        asyncio.ensure_future(
            engine.infer_once(
                row.inputs,
                row.state,
                outputs=outputs,
                return_state=return_state,
                deadline=deadline,
                tenant=tenant,
                admitted=True,
            )
        )
        for row in rows
    ]
    try:
        await asyncio.gather(*work)
    except BaseException:
        for task in work:
            task.cancel()
        ended = await asyncio.gather(*work, return_exceptions=True)
        for index, outcome in enumerate(ended):
            if isinstance(outcome, CarouselError):
                message = f"{place.format(index)}: {outcome.message}"
                raise type(outcome)(message, **outcome.fields, index=index) from outcome
        raise
    return [task.result() for task in work]
