"""POST .../generate: the model feeds itself. One answer, or an event for each step where `Accept` asks for them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.routing import BaseRoute

from service.api import schemas
from service.api.call import Call, Reply, Service, StreamedReply
from service.api.errors import problem
from service.api.events import CONTENT_TYPE, HEADERS, event, event_of, wants_events
from service.api.predict import check_steps, read_bounded
from service.api.routes import TIMEOUT, VERSION, DirectRoute
from service.api.sequences import find_in_path
from service.api.start_state import read_start
from service.errors import CarouselError, InvalidInput, NotGenerative
from service.feedback import Feedback, check_future
from service.model_spec import ModelSpec
from service.protocol.answers import contiguous, named_state, timestamp
from service.protocol.arrays import Array, read_series
from service.protocol.bodies import FreeGenerateBody, GenerateBody, Outputs, SequenceGenerateBody
from service.protocol.codec import decode_body
from service.protocol.text import decode_tokens, encode_text, least_tokens, read_text
from service.registry import LoadedModel
from service.rollout import Feed, Rolled, Step, Tell, TokenFeed, choose_seed, roll_out
from service.sampling import Sampler, Stops
from service.sequence import require_streaming

Body = TypeVar("Body", bound=GenerateBody)
Document = dict[str, Any]
Work = Callable[[Tell], Awaitable[Document]]

TOLD_BY_EVENTS = ("tokens", "values", "outputs")
"""Fields of the answer that the last event leaves out."""


def routes(service: Service) -> list[BaseRoute]:
    events = {"description": "The answer, or its events.", "content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}
    shared: Document = {
        "query": {"version": VERSION, "x_request_timeout_ms": TIMEOUT},
        "more_responses": {200: events},
        "msgpack": True,
    }
    return [
        DirectRoute(
            service,
            "POST",
            "/v1/models/{model}/generate",
            generate,
            body=schemas.FreeGenerateRequest,
            answer=schemas.FreeGenerateAnswer,
            errors=(400, 401, 404, 413, 415, 422, 500, 503, 504),
            tags=["stateless"],
            summary="Let the model go on by itself",
            **shared,
        ),
        DirectRoute(
            service,
            "POST",
            "/v1/models/{model}/sequences/{sequence_id}/generate",
            generate_in_sequence,
            body=schemas.SequenceGenerateRequest,
            answer=schemas.SequenceGenerateAnswer,
            errors=(400, 401, 404, 409, 410, 413, 415, 422, 500, 503, 504),
            tags=["stateful"],
            summary="Let the model go on from where a sequence stands",
            **shared,
        ),
    ]


async def generate(call: Call) -> Reply | StreamedReply:
    """Run `inputs`, then `steps` steps that the model makes itself: token models draw, forecasters feed back.

    It begins at `initial_state`, a `state_token` or zeros. `final_state`, and the `state_token` that seals it, have
    seen all of it, the last generated step too. With `Accept: text/event-stream`: an event `step` for each step as it
    comes, then `done`, or `error` with the problem document. The caller gone, the work stops.
    """
    model, deadline = call.model, call.deadline
    body, asked = await call.read(_read, call, FreeGenerateBody, model)
    start = read_start(call, model, body.initial_state, body.state_token)
    seed = choose_seed() if body.seed is None else body.seed
    feed = asked.feed(seed)

    async def work(tell: Tell) -> Document:
        rolled = await roll_out(
            model.engine,
            asked.inputs,
            feed,
            state=start.state if start else None,
            position=start.step if start else 0,
            outputs=asked.outputs,
            deadline=deadline,
            tenant=call.tenant,
            tell=tell,
        )
        answer = {"model": model.name, "version": model.version, **asked.answer(rolled, feed, seed)}
        if body.return_state:
            answer["state_token"] = call.service.tokens.seal(call.tenant, model, rolled.position, rolled.state)
        return answer

    return await _respond(call, asked, work)


async def generate_in_sequence(call: Call) -> Reply | StreamedReply:
    """As `generate`, from where a sequence stands, on a copy of its state; at the end the sequence moves, or not.

    `commit: true` lets it stand after inputs and generated steps, all at once: an error, or a caller who leaves, leaves
    it as it was, and so does another call that moved it meanwhile (409). A repeat with the same `step` and `seed` gives
    the same answer again, also after a restart and at another replica; a seed that the call did not name is known only
    to the server that chose it, while it runs. `commit: false` moves nothing.
    """
    deadline, sequence = call.deadline, await find_in_path(call, fresh=True)
    model, rollouts = sequence.model, call.service.rollouts
    body, asked = await call.read(_read, call, SequenceGenerateBody, model)
    begin = await rollouts.begin(sequence, step=body.step, seed=body.seed, commit=body.commit)
    feed = asked.feed(begin.seed)

    async def work(tell: Tell) -> Document:
        rolled, replayed = await rollouts.run(
            sequence,
            begin,
            asked.inputs,
            feed,
            commit=body.commit,
            outputs=asked.outputs,
            deadline=deadline,
            tell=tell,
        )
        place = {"sequence_id": sequence.id, "expires_at": timestamp(sequence.expires_at), "replayed": replayed}
        return {**place, **asked.answer(rolled, feed, begin.seed)}

    return await _respond(call, asked, work)


@dataclass(slots=True)
class _Asked:
    """What a call wants of a model, read and checked."""

    spec: ModelSpec
    body: GenerateBody
    inputs: Array
    future: dict[str, NDArray[np.float64]]

    @property
    def outputs(self) -> Outputs:
        return self.body.outputs or ("none" if self.spec.samples else "all")

    def feed(self, seed: int) -> Feed:
        """Raises InvalidInput for what does not go with this model."""
        spec, body = self.spec, self.body
        if not spec.samples:
            if body.stop is not None:
                raise InvalidInput("stop: the model puts out numbers, no text that could come to a stop. Leave it out.")
            return Feedback(spec, self.inputs[-1], body.steps, check_future(spec, self.future, body.steps))
        if self.future:
            raise InvalidInput("future_inputs: the model takes tokens, and all that come are its own. Leave it out.")
        temperature = 1.0 if body.temperature is None else body.temperature
        if not math.isfinite(temperature):
            raise InvalidInput("temperature: expected a finite number, 0 or more.", place="temperature")
        sampler = Sampler(seed, temperature=temperature, top_k=body.top_k)
        return TokenFeed(sampler, self._stops(), body.steps, are_probabilities=spec.output.kind == "probability")

    def _stops(self) -> Stops:
        stop, vocabulary = self.body.stop or [], self.spec.input.vocabulary
        ends = [stop] if isinstance(stop, str) else stop
        if vocabulary is None and any(isinstance(end, str) for end in ends):
            raise InvalidInput(
                "stop: the model has no vocabulary, so it stops at token ids, not at text.", place="stop"
            )
        most = self.spec.output.step_shape[-1] - 1
        if any(isinstance(end, int) and end > most for end in ends):
            raise InvalidInput(
                f"stop: no such token; expected ids from 0 to {most}.", place="stop", expected=f"0..{most}"
            )
        return Stops(ends, vocabulary or ())

    def answer(self, rolled: Rolled, feed: Feed, seed: int) -> Document:
        answer: Document = {"step": rolled.position, "steps": len(rolled.values)}
        if isinstance(feed, TokenFeed):
            answer |= {"tokens": rolled.values, "text": decode_tokens(rolled.values, self.spec.input)}
            answer |= {"finish_reason": "stop" if feed.stopped else "steps", "seed": seed}
        else:
            answer |= {"values": contiguous(rolled.values), "finish_reason": "steps"}
        answer["outputs"] = contiguous(rolled.outputs)
        if self.body.return_state:
            answer["final_state"] = named_state(self.spec, rolled.state)
        return answer

    def told(self, step: Step) -> Document:
        """A step as its event has it."""
        document: Document = {"step": step.position, "number": step.number}
        if self.spec.samples:
            document |= {"token": int(step.value), "text": decode_tokens([int(step.value)], self.spec.input)}
        else:
            document |= {"value": contiguous(step.value)}
        return {**document, "output": contiguous(step.output)} if self.outputs == "all" else document


def _read(call: Call, wanted: type[Body], model: LoadedModel) -> tuple[Body, _Asked]:
    """Raises NotGenerative, NotStreamable; and TooLarge, InvalidInput, MalformedRequest for the body."""
    spec = model.spec
    require_streaming(model)
    if not spec.feeds_itself:
        raise NotGenerative(
            f"Model {model.name!r} draws no tokens, and its manifest declares no `feedback`, so it is not known what "
            "of its outputs it should be fed. Feed it yourself: send the inputs that follow to predict or steps."
        )
    body = decode_body(call.codec, wanted, call.body)
    settings = call.service.settings
    text = read_text(call.codec, body.inputs) if spec.samples else None
    if text is None:
        inputs = read_bounded(call, body.inputs, spec, others=body.steps)
    else:
        check_steps(settings, body.steps + least_tokens(text, spec.input))
        inputs = encode_text(text, spec.input)
    check_steps(settings, body.steps + len(inputs))
    features = 1 if spec.samples else spec.input.step_shape[0]
    future = read_series(call.codec, body.future_inputs, features, body.steps, "future_inputs")
    return body, _Asked(spec, body, inputs, future)


async def _respond(call: Call, asked: _Asked, work: Work) -> Reply | StreamedReply:
    if not wants_events(call):
        return call.answer(await work(_tell_nobody))

    async def run(emit: Callable[[bytes], Awaitable[None]]) -> None:
        begun = False

        async def tell(step: Step) -> None:
            nonlocal begun
            begun = True
            await emit(event("step", asked.told(step)))

        try:
            answer = await work(tell)
        except CarouselError as error:
            if not begun:
                raise
            call.service.metrics.errors.labels(error.code).inc()
            await emit(event_of("error", problem(error, call.scope["path"]).body))
            return
        await emit(event("done", {name: value for name, value in answer.items() if name not in TOLD_BY_EVENTS}))

    return StreamedReply(run, CONTENT_TYPE, HEADERS)


async def _tell_nobody(step: Step) -> None:
    pass
