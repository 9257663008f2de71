"""/v1/models/{model}/sequences: the server carries the state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from service.api.call import Call, Reply, whole_number
from service.api.predict import read_bounded
from service.api.start_state import read_start
from service.engine.request import Result
from service.errors import InvalidInput, SequenceExists, SequenceGone, SequenceNotFound, StepConflict, VersionNotFound
from service.protocol.answers import named_state, steps_document, timestamp
from service.protocol.bodies import (
    MAX_START,
    MAX_STEP,
    SEQUENCE_ID_IN_WORDS,
    CreateBody,
    ForkBody,
    StateBody,
    StepsBody,
    is_sequence_id,
)
from service.protocol.codec import decode_body
from service.registry import LoadedModel
from service.sequence import Listed, Sequence, require_streaming
from service.state_tokens import Opened

MAX_PAGE, PAGE = 1000, 100


async def create(call: Call) -> Reply:
    """Begin a sequence from `initial_state`, a `state_token` or zeros. Every field is optional.

    From a token it begins at the step that the token was sealed at.
    """
    body = await call.read(decode_body, call.codec, CreateBody, call.body or b"{}")
    model = call.service.registry.get(call.path("model"), call.version if body.version is None else body.version)
    start = read_start(call, model, body.initial_state, body.state_token)
    sequence = await call.service.sequences.create(
        call.tenant,
        model,
        sequence_id=body.sequence_id,
        state=start.state if start else None,
        step=start.step if start else 0,
        ttl_seconds=body.ttl_seconds,
    )
    return call.answer(_position(sequence), 201)


async def steps(call: Call) -> Reply:
    """Run the next steps of a sequence; calls to one sequence run in the order of arrival.

    `step` says how many steps the caller believes are done: anything else is a 409 with `expected_step`.
    `commit: false` scores the steps and leaves the state as it was; `start: true` creates a sequence that is not there.
    """
    deadline, body = call.deadline, await call.read(decode_body, call.codec, StepsBody, call.body)

    async def run(sequence: Sequence) -> Result:
        inputs = await call.read(read_bounded, call, body.inputs, sequence.model.spec)
        return await call.service.sequences.step(
            sequence,
            inputs,
            step=body.step,
            outputs=body.outputs,
            return_state=body.return_state,
            commit=body.commit,
            deadline=deadline,
        )

    sequence, result = await step_or_start(call, _sequence_id(call), body.step, run, start=body.start)
    return call.answer(steps_answer(sequence, result))


def steps_answer(sequence: Sequence, result: Result) -> dict[str, Any]:
    """What a `steps` call is answered with."""
    return steps_document(
        sequence.model.spec,
        sequence.id,
        result.position,
        result.outputs,
        result.state,
        sequence.expires_at,
        replayed=result.replayed,
    )


async def read(call: Call) -> Reply:
    """Where a sequence stands, and until when it is kept. To look here does not renew the lease."""
    sequence = await find_in_path(call, fresh=True)
    times = {"created_at": timestamp(sequence.created_at), "last_used_at": timestamp(sequence.last_used_at)}
    return call.answer({**_position(sequence), **times}, headers=[_etag(sequence)])


async def list_sequences(call: Call) -> Reply:
    """The caller's own sequences of a model, by id, a page at a time."""
    limit = whole_number("limit", call.query("limit") or str(PAGE), 1, MAX_PAGE)
    after = call.query("cursor") or ""
    # one more than asked for tells whether there is a next page
    found = await call.service.sequences.list(call.tenant, call.path("model"), after=after, most=limit + 1)
    cursor = found[limit - 1].id if len(found) > limit else None
    return call.answer({"sequences": [_line(listed) for listed in found[:limit]], "next_cursor": cursor})


async def read_sequence_state(call: Call) -> Reply:
    """The hidden (and cell) state a sequence stands at, to look at or, sealed, to carry elsewhere."""
    sequence = await find_in_path(call, fresh=True)
    model = sequence.model
    step, state = await call.service.sequences.read_state(sequence)
    answer = {
        "sequence_id": sequence.id,
        "step": step,
        "expires_at": timestamp(sequence.expires_at),
        "state": named_state(model.spec, state),
        "state_token": call.service.tokens.seal(call.tenant, model, step, state),
    }
    return call.answer(answer, headers=[_etag(sequence)])


async def put_state(call: Call) -> Reply:
    """Create a sequence at `state` and `step`, or overwrite it; with `If-Match: "<step>"` only if it stands there.

    In place of `state` there may be a `state_token`; its own step is taken where `step` is left out.
    """
    body, expected = await call.read(decode_body, call.codec, StateBody, call.body), _if_match(call)
    try:
        sequence = await find_in_path(call, fresh=True)
        start = _read_put(call, sequence.model, body)
        await call.service.sequences.overwrite(sequence, start.state, start.step, if_match=expected)
    except (SequenceNotFound, SequenceGone):  # or it ended while the call waited for its turn
        if call.header(b"if-match"):
            raise
        return call.answer(_position(await _create_at(call, body)))
    return call.answer(_position(sequence), headers=[_etag(sequence)])


async def fork(call: Call) -> Reply:
    """A copy, state and step, that goes its own way."""
    body = await call.read(decode_body, call.codec, ForkBody, call.body or b"{}")
    sequence = await find_in_path(call, fresh=True)
    return call.answer(_position(await call.service.sequences.fork(sequence, body.sequence_id)), 201)


async def delete(call: Call) -> Reply:
    """End a sequence and let go of its state. No step is run."""
    await call.service.sequences.delete(await find_in_path(call, fresh=True))
    return Reply(status=204)


async def find_in_path(call: Call, *, fresh: bool = False) -> Sequence:
    """See `find`. What is not steps asks for it `fresh`: steps see by themselves what other processes did."""
    return await find(call, _sequence_id(call), fresh=fresh)


async def find(call: Call, sequence_id: str, *, fresh: bool = False) -> Sequence:
    """The caller's sequence. Raises what `Sequences.find` does, and VersionNotFound where it has another version."""
    sequence = await call.service.sequences.find(call.tenant, call.path("model"), sequence_id, fresh=fresh)
    check_version(sequence, call.version)
    return sequence


def check_version(sequence: Sequence, version: int | None) -> None:
    """Raises VersionNotFound where the sequence has another version than the call names."""
    if version not in (None, sequence.model.version):
        raise VersionNotFound(
            f"The sequence keeps version {sequence.model.version}, with which it began, until it ends.",
            expected=[sequence.model.version],
            received=version,
        )


async def step_or_start(
    call: Call, sequence_id: str, step: int | None, run: Callable[[Sequence], Awaitable[Result]], *, start: bool
) -> tuple[Sequence, Result]:
    """`run` the steps of a sequence; with `start` on a new one if it is not there, or ends before it is their turn."""
    while True:
        sequence, begun = await _find_or_start(call, sequence_id, step, start=start)
        try:
            return sequence, await run(sequence)
        except BaseException as error:
            if begun:
                call.service.sequences.discard(sequence)
            if begun or not (start and isinstance(error, SequenceGone)):
                raise


async def _find_or_start(call: Call, sequence_id: str, step: int | None, *, start: bool) -> tuple[Sequence, bool]:
    """The sequence, and whether this call began it: it is then to be discarded unless its steps succeed."""
    while True:
        try:
            return await find(call, sequence_id), False
        except (SequenceNotFound, SequenceGone):
            if not start:
                raise
        if step:
            raise StepConflict(
                f"The sequence is not there, so it would begin at step 0, not {step}.",
                expected_step=0,
                expected=0,
                received=step,
            )
        with suppress(SequenceExists):  # another call began it just now
            begun = await call.service.sequences.create(
                call.tenant, call.model, sequence_id=sequence_id, tentative=True
            )
            return begun, True


async def _create_at(call: Call, body: StateBody) -> Sequence:
    model: LoadedModel = call.model
    require_streaming(model)
    start = _read_put(call, model, body)
    return await call.service.sequences.create(
        call.tenant, model, sequence_id=_sequence_id(call), state=start.state, step=start.step
    )


def _read_put(call: Call, model: LoadedModel, body: StateBody) -> Opened:
    start = read_start(call, model, body.state, body.state_token, field="state")
    if start is None:
        raise InvalidInput("state: expected an object, or a state_token beside it, got null.")
    if body.step is not None:
        return Opened(start.state, body.step)
    if body.state_token is None:
        raise InvalidInput(f"step: expected a whole number from 0 to {MAX_START}, got null.")
    return start


def _sequence_id(call: Call) -> str:
    sequence_id = call.path("sequence_id")
    if not is_sequence_id(sequence_id):
        raise InvalidInput(f"sequence_id: expected {SEQUENCE_ID_IN_WORDS}", expected="[A-Za-z0-9._~-]{1,128}")
    return sequence_id


def _if_match(call: Call) -> int | None:
    header = call.header(b"if-match")
    if header is None or header.strip() == "*":
        return None
    text = header.strip()
    quoted = len(text) > 2 and text[0] == text[-1] == '"'
    return whole_number("If-Match", text[1:-1] if quoted else text, 0, MAX_STEP)


def _etag(sequence: Sequence) -> tuple[bytes, bytes]:
    return b"etag", f'"{sequence.step}"'.encode()


def _line(listed: Listed) -> dict[str, Any]:
    return {
        "sequence_id": listed.id,
        "model": listed.model,
        "version": listed.version,
        "step": listed.step,
        "expires_at": timestamp(listed.expires_at),
    }


def _position(sequence: Sequence) -> dict[str, Any]:
    name, version = sequence.model.name, sequence.model.version
    return _line(Listed(sequence.id, name, version, sequence.step, sequence.expires_at))
