"""The short way of POST /v2/.../infer: the next steps of a live sequence whose turn it is, in binary form."""

from __future__ import annotations

from functools import partial
from weakref import WeakKeyDictionary

from service.api.call import Reply, Service
from service.api.edge import Edge
from service.api.oip.exchange import JSON_LENGTH, binary_reply
from service.api.oip.routes import MODEL
from service.api.short_steps import answer_steps
from service.api.short_way import ShortCall
from service.engine.request import Result
from service.errors import CarouselError
from service.protocol.answers import timestamp
from service.protocol.oip.plain import PlainInfer, PlainRequest, open_plain
from service.registry import LoadedModel
from service.sequence import Sequence, Steps


class ShortInfer:
    path = MODEL + "/infer"
    any_type = True

    def __init__(self, service: Service, edge: Edge) -> None:
        self._service = service
        self._edge = edge
        self._plain: WeakKeyDictionary[LoadedModel, PlainInfer] = WeakKeyDictionary()

    def begin(self, call: ShortCall) -> bool:
        sequences = self._service.sequences
        request = open_plain(call.body, call.headers.get(JSON_LENGTH, b""))
        if request is None:
            return False
        sequence = sequences.look_up((call.tenant, call.names[0], request.sequence_id))
        if sequence is None:
            return False
        plain = self._plain_of(sequence.model)
        inputs = plain.read(request, self._service.settings.max_steps)
        if inputs is None:
            return False
        work = Steps(inputs, request.step, "all", False, True, None)
        try:
            begun = sequences.begin(sequence, work, partial(self._end, call, sequence, plain, request))
        except CarouselError as error:
            call.answer(self._edge.fail(error, call.path))
            return True
        if begun is None:
            return False
        call.withdraw = partial(sequences.withdraw, sequence, begun)
        return True

    def _plain_of(self, model: LoadedModel) -> PlainInfer:
        plain = self._plain.get(model)
        if plain is None:
            plain = self._plain[model] = PlainInfer(model.name, model.version, model.spec)
        return plain

    def _end(
        self,
        call: ShortCall,
        sequence: Sequence,
        plain: PlainInfer,
        request: PlainRequest,
        outcome: Result | CarouselError,
    ) -> None:
        def answer(result: Result) -> Reply:
            expires_at = timestamp(sequence.expires_at)
            return binary_reply(*plain.write(request, result.outputs, result.position, expires_at))

        answer_steps(self._edge, call, sequence, request.step, outcome, answer)
