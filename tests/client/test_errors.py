"""The client's errors are those of the server, by code and by kinship."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from carousel_client import errors
from service import errors as served
from service.api.errors import STATUS


def _kinds(base: type[Exception]) -> Iterator[type[Exception]]:
    yield base
    for kind in base.__subclasses__():
        yield from _kinds(kind)


TOLD = [kind for base in STATUS for kind in _kinds(base)]


@pytest.mark.parametrize("kind", TOLD, ids=lambda kind: kind.__name__)
def test_each_error_of_the_server_has_its_counterpart(kind: type[served.CarouselError]) -> None:
    ours = errors.from_problem({"code": kind.code, "detail": "so it is", "status": 0})
    assert type(ours).__name__ == kind.__name__
    assert str(ours) == "so it is"
    parents = {parent.__name__ for parent in kind.__mro__ if issubclass(parent, served.CarouselError)}
    assert parents <= {parent.__name__ for parent in type(ours).__mro__}


@pytest.mark.parametrize(
    ("status", "kind"), [(502, errors.UnexpectedAnswer), (503, errors.Unavailable), (404, errors.NotFound)]
)
def test_what_a_balancer_says_by_itself_is_told_by_its_status(status: int, kind: type[errors.CarouselError]) -> None:
    error = errors.from_answer(status, b"<html>\n Bad \xff", {"retry-after": "7"})
    assert (type(error), error.status, error.retry_after) == (kind, status, 7.0)
    assert "<html>" in str(error)


def test_a_code_that_is_not_known_yet_is_told_by_its_status() -> None:
    error = errors.from_problem({"code": "brand_new", "status": 409, "detail": "?", "expected": 1, "received": 2})
    assert type(error) is errors.Conflict
    assert (error.expected, error.received, error.problem["code"]) == (1, 2, "brand_new")
    assert type(errors.from_problem({"detail": "nothing else"})) is errors.CarouselError
