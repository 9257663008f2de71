"""The documented schema, the general readers and the decoder of the short way take the same bodies, alike."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.api.schemas import StepsRequest
from service.errors import CarouselError
from service.protocol.arrays import read_inputs
from service.protocol.bodies import StepsBody
from service.protocol.codec import JSON, decode_body
from service.protocol.misfits import MISFITS
from service.protocol.steps import StepsReader
from tests.service.protocol.specs import spec

LARGEST = float(np.finfo(np.float32).max)


SPECS = {
    "numbers": spec(2),
    "tokens": spec(dtype="int64", kind="token", vocabulary=list("abcde")),
    "two axes": spec(2, 1),
}

NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(-9, 9),
    st.sampled_from([0, -0.0, 1e-320, 2**24 + 1, 10**25, 10**38, LARGEST, -LARGEST, 3.5e38, -1e39, 1e308, 10**400]),
)
ODD = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=3), st.just([]), st.just({}), st.integers(2**53, 2**70)
)
GOOD_INPUTS = {
    "numbers": st.lists(st.lists(NUMBERS, min_size=2, max_size=2), min_size=1, max_size=4),
    "tokens": st.lists(st.integers(0, 4), min_size=1, max_size=6),
    "two axes": st.lists(
        st.lists(st.lists(NUMBERS, min_size=1, max_size=1), min_size=2, max_size=2), min_size=1, max_size=3
    ),
}
_ANY = NUMBERS | ODD
BAD_INPUTS = _ANY | st.lists(_ANY, max_size=3) | st.lists(st.lists(_ANY, max_size=3), max_size=3)
FIELDS = {
    "step": st.none() | st.integers(-1, 5) | st.sampled_from([2**53 - 1, 2**53, 1.0]),
    "outputs": st.sampled_from(["all", "last", "none", "some", "All"]),
    "return_state": st.booleans(),
    "commit": st.booleans(),
    "start": st.booleans(),
}
USUAL = {**FIELDS, "step": st.none() | st.integers(0, 5), "outputs": st.sampled_from(["all", "last", "none"])}
EDGES: list[Any] = [-1, 0, 1.0, 2**53 - 1, 2**53, "all", "last", "none", "All", "", True, False, None, [], {}]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """(which spec, the body): mostly good, or bad in one place, or in how it is written."""
    which = draw(st.sampled_from(sorted(SPECS)))
    fields = draw(st.fixed_dictionaries({"inputs": GOOD_INPUTS[which]}, optional=USUAL))
    damage = draw(st.sampled_from(["", "", "", "inputs", "field", "odd", "unknown", "missing", "twice"]))
    if damage == "inputs":
        fields["inputs"] = draw(BAD_INPUTS)
    elif damage in ("field", "odd"):
        name = draw(st.sampled_from(sorted(FIELDS)))
        fields[name] = draw(FIELDS[name] if damage == "field" else ODD)
    elif damage == "unknown":
        fields[draw(st.sampled_from(["beams", "Inputs", "input", "", "step "]))] = 1
    elif damage == "missing":
        del fields["inputs"]
    text = json.dumps(fields, separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:")]))).encode()
    if damage == "twice":
        text = text[:-1] + b', "inputs": ' + json.dumps(draw(BAD_INPUTS | GOOD_INPUTS[which])).encode() + b"}"
    return which, text


def broken(text: bytes, random: Random) -> bytes:
    """With another byte, a word or nothing in place of one of its bytes."""
    at = random.randrange(len(text))
    words = (b"", b"\xff", b"]", b"1", b",", b"NaN", b"Infinity", b"\x00", b'"', b"}", b"[", b"-", b"e9", b".", b"null")
    return text[:at] + random.choice(words) + text[at + 1 :]


def altered(text: bytes, random: Random) -> bytes:
    """With another value in one of its fields, or one field more."""
    fields = json.loads(text)
    fields[random.choice([*FIELDS, "beams"])] = random.choice(EDGES)
    return json.dumps(fields).encode()


def general_reading(which: str, body: bytes) -> tuple[StepsBody, Any] | None:
    """What the long way reads; None where it refuses."""
    try:
        fields = decode_body(JSON, StepsBody, body)
        return fields, read_inputs(JSON, fields.inputs, SPECS[which])
    except CarouselError:
        return None


def fields_fit(body: bytes) -> bool:
    """Does the general reader take the fields, and are the inputs some list? The rest is for the model to say."""
    try:
        return bytes(decode_body(JSON, StepsBody, body).inputs).startswith(b"[")
    except CarouselError:
        return False


def is_documented(body: bytes) -> bool:
    """Is it JSON, which has no NaN for anybody but pydantic, and does the schema take it?"""
    try:
        json.loads(body, parse_constant=int)
        StepsRequest.model_validate_json(body)
    except ValueError:
        return False
    return True


READERS = {which: StepsReader(of) for which, of in SPECS.items()}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=bodies(), seed=st.integers(0, 2**32))
@example(made=("numbers", b'{"inputs": [[0, -3.402823466385886e38]]}'), seed=0)  # rounded into float32
def test_thousands_of_bodies_good_and_bad_have_one_verdict_and_one_meaning(made: tuple[str, bytes], seed: int) -> None:
    (which, body), random = made, Random(seed)
    for text in (body, *(make(body, random) for make in (broken, altered) for _ in range(6))):
        require_one_verdict(which, text)


def require_one_verdict(which: str, body: bytes) -> None:
    expected, documented = general_reading(which, body), is_documented(body)
    assert documented or expected is None, body
    assert fields_fit(body) or not documented, body
    try:
        fields, inputs = READERS[which].read(body)
    except MISFITS:
        # of a field that stands there twice the last counts, for the general readers even if the first is bad
        assert expected is None or body.count(b'"inputs"') == 2, body
        return
    assert expected is not None, body
    assert (inputs.dtype, inputs.shape) == (expected[1].dtype, expected[1].shape)
    assert inputs.tobytes() == expected[1].tobytes()
    for name in FIELDS:
        assert getattr(fields, name) == getattr(expected[0], name)


def test_what_rounds_into_float32_is_taken_and_what_does_not_is_refused() -> None:
    most = math.nextafter(LARGEST + 2.0**103, 0)
    for number, fits in ((most, True), (math.nextafter(most, math.inf), False)):
        body = json.dumps({"inputs": [[number, 0.0]]}).encode()
        assert (general_reading("numbers", body) is not None) == fits
        if fits:
            assert READERS["numbers"].read(body)[1].tolist() == [[LARGEST, 0.0]]
        else:
            with pytest.raises(MISFITS):
                READERS["numbers"].read(body)
