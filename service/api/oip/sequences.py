"""Inference within sequences: the server carries the state. The sequences are those of /v1, by the same ids.

A numeric id is the sequence that /v1 names by its digits. A call has one sequence, `sequence_id`, or one for each row,
`sequence_ids`; its rows succeed or fail each by itself, and the first error is the answer.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from service.api.call import Call, Reply
from service.api.oip.exchange import answer, deadline_of, engine_outputs, fit, other_outputs, told_of_sequence
from service.api.oip.models import model_of, version_of
from service.api.predict import check_batch
from service.api.sequences import check_version
from service.engine.request import Array, Outputs, Result, State
from service.errors import (
    CarouselError,
    InvalidInput,
    SequenceExists,
    SequenceGone,
    SequenceNotFound,
    StepConflict,
)
from service.protocol.bodies import SEQUENCE_ID_IN_WORDS, is_sequence_id
from service.protocol.oip.bodies import MAX_NUMBER, Parameters, SequenceId
from service.protocol.oip.requests import Envelope, Inference
from service.registry import LoadedModel
from service.sequence import Sequence

START_FIRST = "The first request of a sequence must set sequence_start."


@dataclass(slots=True)
class Row:
    """One sequence's part in a call."""

    id: str
    step: int | None
    """Where the caller believes the sequence to stand."""
    sequence: Sequence | None
    """None: it is not there, and this call begins it."""


@dataclass(slots=True)
class Work:
    """What is asked of every row."""

    call: Call
    model: LoadedModel
    parameters: Parameters
    deadline: float | None
    outputs: Outputs
    return_state: bool


async def infer_in_sequences(call: Call, envelope: Envelope) -> Reply:
    """Find or begin the sequences, run their rows, and end them where that is asked."""
    parameters = envelope.parameters
    check_batch(call.service.settings, len(parameters.sequence_ids or ()))
    rows = [await _find(call, *named, may_begin=parameters.sequence_start) for named in _named(parameters)]
    model = _one_model(call, parameters, rows)
    inference = await call.read(fit, call, envelope, model.spec, False)
    _check_rows(parameters, rows, inference)
    outputs, return_state = engine_outputs(model.spec, inference)
    work = Work(call, model, parameters, deadline_of(call, envelope), outputs, return_state)
    results = await _run(work, rows, inference)
    for row, result in zip(rows, results, strict=True):
        _require_whole(row, result, inference, work)
    return answer(envelope, model, inference, results, _told(envelope, rows, results))


def is_in_sequences(parameters: Parameters) -> bool:
    """Does the call name one? Raises InvalidInput where it says start or end of none."""
    if parameters.sequence_id or parameters.sequence_ids:
        return True
    if parameters.sequence_start or parameters.sequence_end or parameters.sequence_step is not None:
        raise InvalidInput(
            "parameters: sequence_start, sequence_end and sequence_step need a sequence_id, not 0 or ''."
        )
    return False


def _named(parameters: Parameters) -> list[tuple[str, int | None]]:
    """(id, step) of each row."""
    ids = parameters.sequence_ids
    if ids is None:
        return [(_id_text(parameters.sequence_id), parameters.sequence_step)]
    names = [_id_text(each) for each in ids]
    if len(set(names)) < len(names):
        raise InvalidInput("sequence_ids: each sequence may have one row of a call.")
    if parameters.sequence_id and _id_text(parameters.sequence_id) not in names:
        raise InvalidInput("sequence_id: beside sequence_ids, expected one of them.", expected=names[:20])
    if parameters.sequence_step is not None:
        raise InvalidInput("sequence_step: beside sequence_ids, send sequence_steps, one a row.")
    steps = parameters.sequence_steps
    if steps is not None and len(steps) != len(names):
        raise InvalidInput(
            f"sequence_steps: expected {len(names)}, one for each of sequence_ids, got {len(steps)}.",
            expected=len(names),
            received=len(steps),
        )
    return [(name, steps[n] if steps else None) for n, name in enumerate(names)]


def _id_text(sequence_id: SequenceId) -> str:
    text = str(sequence_id)
    if not (isinstance(sequence_id, str) or 0 < sequence_id <= MAX_NUMBER) or not is_sequence_id(text):
        raise InvalidInput(
            f"sequence_id: expected a whole number from 1 to 2^64 - 1, or {SEQUENCE_ID_IN_WORDS}",
            expected="uint64 or [A-Za-z0-9._~-]{1,128}",
            received=text[:40],
        )
    return text


async def _find(call: Call, sequence_id: str, step: int | None, *, may_begin: bool) -> Row:
    try:
        sequence = await call.service.sequences.find(call.tenant, call.path("model"), sequence_id)
    except (SequenceNotFound, SequenceGone) as error:
        if may_begin:
            return Row(sequence_id, step, None)
        raise _not_there(call, error) from error
    check_version(sequence, version_of(call))
    return Row(sequence_id, step, sequence)


def _not_there(call: Call, error: SequenceNotFound | SequenceGone) -> CarouselError:
    gone = isinstance(error, SequenceGone)
    message = f"The sequence has ended: {error.fields.get('reason')}." if gone else "There is no such sequence."
    kind = InvalidInput if call.service.settings.oip_strict else type(error)
    told = kind(f"{message} {START_FIRST}", **error.fields)
    told.code = error.code
    return told


def _one_model(call: Call, parameters: Parameters, rows: list[Row]) -> LoadedModel:
    """The version that all rows run on: that which a sequence keeps, the one in the path for those that begin."""
    begins = parameters.sequence_start and parameters.sequence_takeover
    models = {row.sequence.model if row.sequence and not begins else model_of(call) for row in rows}
    if len(models) > 1:
        versions = sorted(model.version for model in models)
        raise InvalidInput(
            f"sequence_ids: these sequences began with versions {versions}; the rows of a call share one.",
            received=versions,
        )
    return next(iter(models))


def _check_rows(parameters: Parameters, rows: list[Row], inference: Inference) -> None:
    if len(inference.inputs) != len(rows):
        raise InvalidInput(
            f"inputs: expected a batch of {len(rows)}, one row for each sequence, got {len(inference.inputs)}. Name a "
            "sequence for each row in sequence_ids.",
            expected=len(rows),
            received=len(inference.inputs),
        )
    if inference.states is not None and not parameters.sequence_start:
        raise InvalidInput("inputs: the server carries the states of a sequence; send them with sequence_start only.")


async def _run(work: Work, rows: list[Row], inference: Inference) -> list[Result]:
    states: list[State] | list[None] = inference.states or [None] * len(rows)
    if len(rows) == 1:
        return [await _run_row(work, rows[0], inference.inputs[0], states[0])]
    tasks = [_run_row(work, *each) for each in zip(rows, inference.inputs, states, strict=True)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, CarouselError):
            raise type(outcome)(
                f"Row {index}: {outcome.message} Others may have run; with sequence_steps the call can be repeated.",
                **{**outcome.fields, "index": index},
            ) from outcome
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Result)]


async def _run_row(work: Work, row: Row, inputs: Array, state: State | None) -> Result:
    if work.parameters.sequence_start:
        result = await _start(work, row, inputs, state)
    else:
        assert row.sequence is not None, "it was found"
        result = await _step(work, row.sequence, row.step, inputs)
    if work.parameters.sequence_end and row.sequence is not None:
        with suppress(SequenceGone):  # somebody else was faster
            await work.call.service.sequences.delete(row.sequence)
    return result


async def _step(work: Work, sequence: Sequence, step: int | None, inputs: Array) -> Result:
    return await work.call.service.sequences.step(
        sequence,
        inputs,
        step=step,
        outputs=work.outputs,
        return_state=work.return_state,
        deadline=work.deadline,
    )


async def _start(work: Work, row: Row, inputs: Array, state: State | None) -> Result:
    """The first steps of a sequence, from `state` or zeros; a live one is in the way, or taken over."""
    if row.step:
        raise StepConflict(
            f"A sequence begins at step 0, not {row.step}.", expected_step=0, expected=0, received=row.step
        )
    if row.sequence is not None:
        with suppress(SequenceNotFound, SequenceGone):  # it ended meanwhile, at another server perhaps
            return await _start_again(work, row, inputs, state)
    sequences = work.call.service.sequences
    try:
        sequence = await sequences.create(work.call.tenant, work.model, sequence_id=row.id, state=state, tentative=True)
    except SequenceExists:  # since it was looked for; perhaps by the same call, sent twice
        return await _start_again(work, row, inputs, state)
    row.sequence = sequence
    try:
        return await _step(work, sequence, row.step, inputs)
    except BaseException:
        sequences.discard(sequence)
        raise


async def _start_again(work: Work, row: Row, inputs: Array, state: State | None) -> Result:
    """The id is taken: perhaps by this very call, whose answer was lost; or the caller takes the sequence over."""
    live = await work.call.service.sequences.find(work.call.tenant, work.model.name, row.id, fresh=True)
    row.sequence = live
    if work.parameters.sequence_takeover:
        return await _take_over(work, row, live, inputs, state)
    if row.step == 0 and (live.tentative or live.step + live.steps_queued > 0):
        with suppress(StepConflict):
            return await _step(work, live, 0, inputs)
    raise SequenceExists(f"Sequence {row.id!r} is there already. End it, take another id, or set sequence_takeover.")


async def _take_over(work: Work, row: Row, live: Sequence, inputs: Array, state: State | None) -> Result:
    """Run the steps beside the live sequence, and replace it once they went well. A repeat does the same again."""
    sequences = work.call.service.sequences
    result = await work.model.engine.infer_once(
        inputs, state, outputs=work.outputs, return_state=True, deadline=work.deadline, tenant=work.call.tenant
    )
    await sequences.delete(live)
    row.sequence = await sequences.create(
        work.call.tenant, work.model, sequence_id=row.id, state=result.state, step=result.steps
    )
    return result


def _require_whole(row: Row, result: Result, inference: Inference, work: Work) -> None:
    """Raises StepConflict where a repeated answer lacks what is asked for now."""
    has_outputs = work.outputs == "none" or len(result.outputs) == inference.inputs.shape[1]
    if not has_outputs or (result.state is None and work.return_state):
        raise other_outputs(row.id, row.step, result)


def _told(envelope: Envelope, rows: list[Row], results: list[Result]) -> dict[str, Any]:
    parameters = envelope.parameters
    each = [
        told_of_sequence(envelope, row.sequence, result)
        for row, result in zip(rows, results, strict=True)
        if row.sequence is not None
    ]
    told = each[0]
    if parameters.sequence_ids is not None:
        told = {
            "sequence_ids": parameters.sequence_ids,
            "sequence_steps": [one["sequence_step"] for one in each],
            "sequence_replayed": any(one["sequence_replayed"] for one in each),
            "sequence_expires_at": min(one["sequence_expires_at"] for one in each),
        }
    if parameters.sequence_end:
        del told["sequence_expires_at"]
    return told
