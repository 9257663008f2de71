"""What does not fit a body is named by its place, with what was expected and what came, and never at length."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import CarouselError, InvalidInput, MalformedRequest
from service.protocol.bodies import CreateBody, PredictBody, StepsBody
from service.protocol.codec import JSON, decode_body


@pytest.mark.parametrize(
    ("wanted", "body", "message", "facts"),
    [
        (PredictBody, b"null", "body: expected `object`, got `null`.", {"expected": "object", "received": "null"}),
        (StepsBody, b'{"step": 1.5}', "step: expected `int | null`, got `float`.", {"received": "float"}),
        (StepsBody, b'{"step": -1}', "step: expected `int` >= 0.", {"place": "step", "expected": "int >= 0"}),
        (
            StepsBody,
            b'{"outputs": "some"}',
            "outputs: expected all or last or none, got 'some'.",
            {"expected": ["all", "last", "none"], "received": "'some'"},
        ),
        (
            PredictBody,
            b'{"sequences": [{"inputs": [1]}, {}]}',
            "sequences[1]: object missing required field `inputs`.",
            {"place": "sequences[1]", "index": 1},
        ),
        (PredictBody, b'{"sequences": [{"inputs": [NaN]}]}', "", {"place": "sequences[0].inputs[0]", "index": 0}),
    ],
)
def test_a_misfit_is_told_with_its_place_and_the_facts(
    wanted: Any, body: bytes, message: str, facts: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode_body(JSON, wanted, body)
    assert refused.value.message.startswith(message)
    assert facts.items() <= refused.value.fields.items()


def test_an_unknown_field_is_malformed_and_a_value_that_says_so_is_not() -> None:
    with pytest.raises(MalformedRequest, match=r"^sequences\[0\]: object contains unknown field `beams`") as refused:
        decode_body(JSON, PredictBody, b'{"sequences": [{"inputs": [1], "beams": 2}]}')
    assert refused.value.fields["index"] == 0
    with pytest.raises(InvalidInput):
        decode_body(JSON, StepsBody, b'{"outputs": "Object contains unknown field"}')


@pytest.mark.parametrize("body", [b'{"%s": 1}', b'{"outputs": "%s"}', b'{"sequence_id": "%s"}'])
def test_what_came_is_never_told_at_length(body: bytes) -> None:
    with pytest.raises(CarouselError) as refused:
        decode_body(JSON, CreateBody if b"sequence" in body else StepsBody, body % (b"x" * 100_000))
    assert len(refused.value.message) < 500
    assert len(str(refused.value.fields)) < 1000
