"""The short way of POST .../steps: a live sequence whose turn it is, and a small JSON body that fits its model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from service.api.call import Reply, Service
from service.api.edge import CALLER_GONE, Edge
from service.api.sequence_routes import ONE
from service.api.sequences import steps_answer
from service.api.short_way import ShortCall
from service.engine.request import Result
from service.errors import CarouselError
from service.protocol.codec import JSON
from service.protocol.misfits import MISFITS
from service.protocol.steps import StepsReader
from service.sequence import Sequence, Steps


class ShortSteps:
    path = ONE + "/steps"
    any_type = False
    for_workers = True

    def __init__(self, service: Service, edge: Edge) -> None:
        self._service = service
        self._edge = edge
        self._readers: dict[str, StepsReader] = {}
        """By the fingerprint of a model, which may be unloaded: nothing here holds it."""

    def begin(self, call: ShortCall) -> bool:
        sequences = self._service.sequences
        model_name, sequence_id = call.names
        sequence = sequences.look_up((call.tenant, model_name, sequence_id))
        if sequence is None:
            return False
        try:
            body, inputs = self._reader(sequence).read(call.body)
        except MISFITS:
            return False
        if len(inputs) > self._service.settings.max_steps:
            return False
        work = Steps(inputs, body.step, body.outputs, body.return_state, body.commit, None)
        try:
            request = sequences.begin(sequence, work, partial(self._end, call, sequence))
        except CarouselError as error:
            call.answer(self._edge.fail(error, call.path))
            return True
        if request is None:
            return False
        call.withdraw = partial(sequences.withdraw, sequence, request)
        return True

    def _reader(self, sequence: Sequence) -> StepsReader:
        model = sequence.model
        reader = self._readers.get(model.fingerprint)
        if reader is None:
            reader = self._readers[model.fingerprint] = StepsReader(model.spec)
        return reader

    def _end(self, call: ShortCall, sequence: Sequence, outcome: Result | CarouselError) -> None:
        answer_steps(self._edge, call, outcome, lambda result: _answer(sequence, result))


def answer_steps(
    edge: Edge, call: ShortCall, outcome: Result | CarouselError, answer: Callable[[Result], Reply]
) -> None:
    """Say how steps ended that a call asked for."""
    if call.disconnected:
        reply = Reply(status=CALLER_GONE)
    elif isinstance(outcome, CarouselError):
        reply = edge.fail(outcome, call.path)
    else:
        try:
            reply = answer(outcome)
        except Exception:
            reply = edge.fail_unforeseen(call.route, "POST", call.path)
    call.answer(reply)


def _answer(sequence: Sequence, result: Result) -> Reply:
    return Reply(JSON.encode(steps_answer(sequence, result)))
