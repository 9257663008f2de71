from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from service import errors
from service.api.errors import STATUS, internal_problem, problem, status_of
from service.errors import CarouselError

CONTRACT = {
    "MalformedRequest": 400,
    "Unauthenticated": 401,
    "RouteNotFound": 404,
    "ModelNotFound": 404,
    "VersionNotFound": 404,
    "SequenceNotFound": 404,
    "MethodNotAllowed": 405,
    "SequenceExists": 409,
    "StepConflict": 409,
    "StateMoved": 409,
    "SequenceGone": 410,
    "StateDamaged": 410,
    "TooLarge": 413,
    "UnsupportedEncoding": 415,
    "InvalidInput": 422,
    "InvalidState": 422,
    "NotStreamable": 422,
    "NotGenerative": 422,
    "NonFiniteResult": 422,
    "HeadTooLarge": 431,
    "EngineFailure": 500,
    "QueueFull": 503,
    "NoRoom": 503,
    "Draining": 503,
    "ModelNotReady": 503,
    "StoreUnavailable": 503,
    "DeadlineExceeded": 504,
}


def leaves(kind: type[CarouselError]) -> Iterator[type[CarouselError]]:
    if not kind.__subclasses__():
        yield kind
    for child in kind.__subclasses__():
        yield from leaves(child)


MET_BY_CALLERS = [leaf for leaf in leaves(CarouselError) if not issubclass(leaf, errors.StartupError)]


@pytest.mark.parametrize("kind", MET_BY_CALLERS)
def test_every_error_that_a_caller_can_meet_is_in_the_table(kind: type[CarouselError]) -> None:
    assert any(base in STATUS for base in kind.__mro__)


@pytest.mark.parametrize("name", CONTRACT)
def test_statuses_are_the_contracts(name: str) -> None:
    assert status_of(getattr(errors, name)("message")) == CONTRACT[name]


def test_codes_differ() -> None:
    codes = [leaf.code for leaf in MET_BY_CALLERS]
    assert len(set(codes)) == len(codes)


def test_a_problem_carries_the_facts_and_retry_after() -> None:
    reply = problem(errors.QueueFull("Full.", limit=8, retry_after=3), "/v1/x")
    assert dict(reply.headers)[b"retry-after"] == b"3"
    assert json.loads(reply.body) == {
        "type": "urn:carousel:problem:queue_full",
        "title": "The queue is full",
        "status": 503,
        "detail": "Full.",
        "instance": "/v1/x",
        "code": "queue_full",
        "limit": 8,
    }


def test_facts_do_not_overwrite_the_document() -> None:
    reply = problem(errors.ModelNotReady("Not yet.", status="cold", code="x"), "/\udcff")
    document = json.loads(reply.body)
    assert (document["status"], document["code"], document["instance"]) == (503, "model_not_ready", "/?")
    assert dict(reply.headers)[b"retry-after"] == b"1"


def test_an_internal_error_is_a_500() -> None:
    assert internal_problem("/").status == 500
