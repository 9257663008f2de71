"""The short way of POST /v2/.../infer: the next steps of a live sequence whose turn it is, in binary form."""

from __future__ import annotations

from functools import partial

from service.api.call import Service
from service.api.edge import Edge
from service.api.oip.compression import asks_for_compression
from service.api.oip.exchange import JSON_LENGTH, binary_reply, other_outputs
from service.api.oip.routes import MODEL
from service.api.short_steps import answer_steps
from service.api.short_way import ShortCall
from service.engine.request import Result
from service.errors import CarouselError
from service.protocol.answers import timestamp
from service.protocol.oip.bodies import InferBody
from service.protocol.oip.plain import PlainInfer, open_plain
from service.registry import LoadedModel
from service.sequence import Sequence, Steps


class ShortInfer:
    path = MODEL + "/infer"
    any_type = True
    for_workers = False

    def __init__(self, service: Service, edge: Edge) -> None:
        self._service = service
        self._edge = edge
        self._plain: dict[tuple[str, int, str], PlainInfer] = {}
        """By name, version and fingerprint of a model, which may be unloaded: nothing here holds it."""

    def begin(self, call: ShortCall) -> bool:
        sequences, body = self._service.sequences, call.body
        if asks_for_compression(call.headers.get(b"accept-encoding", b"")):
            return False
        opened = open_plain(body, call.headers.get(JSON_LENGTH, b""))
        if opened is None:
            return False
        fields, at = opened
        assert fields.parameters is not None, "they name the sequence"
        sequence = sequences.look_up((call.tenant, call.names[0], str(fields.parameters.sequence_id)))
        if sequence is None:
            return False
        plain = self._plain_of(sequence.model)
        inputs = plain.read(fields, body, at, self._service.settings.max_steps)
        if inputs is None:
            return False
        work = Steps(inputs, fields.parameters.sequence_step, "all", False, True, None)
        try:
            request = sequences.begin(sequence, work, partial(self._end, call, sequence, plain, fields, work))
        except CarouselError as error:
            call.answer(self._edge.fail(error, call.path))
            return True
        if request is None:
            return False
        call.withdraw = partial(sequences.withdraw, sequence, request)
        return True

    def _plain_of(self, model: LoadedModel) -> PlainInfer:
        key = (model.name, model.version, model.fingerprint)
        plain = self._plain.get(key)
        if plain is None:
            plain = self._plain[key] = PlainInfer(model.name, model.version, model.spec)
        return plain

    def _end(
        self,
        call: ShortCall,
        sequence: Sequence,
        plain: PlainInfer,
        fields: InferBody,
        work: Steps,
        outcome: Result | CarouselError,
    ) -> None:
        if isinstance(outcome, Result) and len(outcome.outputs) != len(work.inputs):
            outcome = other_outputs(sequence.id, work.step, outcome)
        answer_steps(
            self._edge,
            call,
            outcome,
            lambda result: binary_reply(*plain.write(fields, result, timestamp(sequence.expires_at))),
        )
