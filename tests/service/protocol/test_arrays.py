"""What goes over the wire comes back as the same float32, bit for bit; what does not fit is named."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.errors import InvalidInput, InvalidState
from service.model_spec import ModelSpec
from service.protocol import misfits
from service.protocol.arrays import LARGE_BYTES, count_steps, read_inputs, read_state
from service.protocol.codec import JSON, MSGPACK, Codec
from service.protocol.steps import StepsReader
from tests.service.protocol.specs import spec

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=lambda codec: codec.name)
@given(sent=arrays(np.float32, st.tuples(st.integers(1, 5), st.just(3)), elements=FLOATS))
def test_float32_survives_the_wire_bit_for_bit(codec: Codec, sent: Any) -> None:
    received = read_inputs(codec, msgspec.Raw(codec.encode(sent)), spec(3))
    assert received.dtype == np.float32
    assert received.tobytes() == sent.tobytes()


@given(sent=arrays(np.float32, (2, 3, 2), elements=FLOATS))
def test_features_may_have_more_than_one_axis(sent: Any) -> None:
    assert read_inputs(JSON, msgspec.Raw(JSON.encode(sent)), spec(3, 2)).tobytes() == sent.tobytes()


def test_messagepack_nan_is_refused_with_its_place() -> None:
    raw = msgspec.Raw(msgspec.msgpack.encode([[1.0, 2.0], [3.0, float("nan")]]))
    with pytest.raises(InvalidInput, match=r"^inputs\[1\]\[1\]: expected a finite number"):
        read_inputs(MSGPACK, raw, spec(2))


@pytest.mark.parametrize(("codec", "null"), [(JSON, b"null"), (MSGPACK, b"\xc0"), (JSON, b"")])
def test_a_state_that_is_null_or_left_out_is_none(codec: Codec, null: bytes) -> None:
    assert read_state(codec, msgspec.Raw(null), spec(1)) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@given(value=values)
def test_any_json_is_either_taken_or_named(value: Any) -> None:
    message, array = "", None
    try:
        array = read_inputs(JSON, msgspec.Raw(json.dumps(value).encode()), spec(2), "sequences[3].inputs")
    except InvalidInput as error:
        message = error.message
    if array is None:
        assert message.startswith("sequences[3].inputs")
    else:
        assert array.tolist() == np.array(value, np.float32).tolist()


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=lambda codec: codec.name)
def test_what_is_read_in_blocks_is_the_same_bit_for_bit(codec: Codec) -> None:
    sent = np.random.default_rng(0).standard_normal((30_001, 3)).astype(np.float32)
    raw = msgspec.Raw(codec.encode(sent))
    assert len(raw) > LARGE_BYTES
    assert read_inputs(codec, raw, spec(3)).tobytes() == sent.tobytes()


@pytest.mark.parametrize(
    ("bad", "place", "says"),
    [
        (b'[0,"x"]', "inputs[70000][1]", "expected a number, got a string"),
        (b"[]", "inputs[70000]", "expected a list of 2 numbers, got 0"),
        (b"7", "inputs[70000]", "expected a list of 2 numbers, got 7"),
        (b"[1e39,0]", "inputs[70000][0]", "float32"),
        (b"[0," + b"9" * 5000 + b"]", "inputs[70000][1]", "beyond float32"),
        (b'[0,"\xff"]', "inputs[70000][1]", "expected a number, got text that is not UTF-8"),
    ],
)
def test_the_place_in_a_large_field_is_found_block_by_block(
    monkeypatch: pytest.MonkeyPatch, bad: bytes, place: str, says: str
) -> None:
    looked_at, find = [], misfits.find_misfit
    monkeypatch.setattr(misfits, "find_misfit", lambda *args: looked_at.append(args) or find(*args))
    raw = msgspec.Raw(b"[" + b"[0,0]," * 70_000 + bad + b"]")
    with pytest.raises(InvalidInput) as refused:
        read_inputs(JSON, raw, spec(2))
    assert refused.value.fields["place"] == place
    assert says in refused.value.message
    assert refused.value.fields["received"] == [70_001, 2]
    assert len(looked_at) <= 2, "only the step and the number that do not fit"


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=lambda codec: codec.name)
@pytest.mark.parametrize("shape", [(1, 1), (15, 3), (16, 2), (70_000, 1), (9, 3, 2)])
def test_steps_are_counted_without_reading_them(codec: Codec, shape: tuple[int, ...]) -> None:
    raw = msgspec.Raw(codec.encode(np.zeros(shape, np.float32)))
    assert count_steps(codec, raw, spec(*shape[1:])) == shape[0]


@pytest.mark.parametrize("raw", [b"[" + b"[]," * 500 + b"[]]", b"[" + b"0,0," * 500 + b"0,0]"])
def test_what_is_as_long_as_many_steps_counts_as_many(raw: bytes) -> None:
    assert count_steps(JSON, msgspec.Raw(raw), spec(2)) == 501


def test_a_state_much_longer_than_its_numbers_is_not_looked_into() -> None:
    raw = msgspec.Raw(b'{"h": [' + b"[0,0]," * 10_000 + b"[0,0]]}")
    with pytest.raises(InvalidState, match=r"^initial_state.h: 60007 bytes are more than \[1, 2\] numbers need"):
        read_state(JSON, raw, spec(1))


def pairs_of_tokens() -> ModelSpec:
    """Letters below 5, marks below 3, one of each a step."""
    fields = spec(1).model_dump()
    fields["inputs"] = [
        {"name": "x", "dtype": "int64", "shape": ["batch", "time", 2], "kind": "token", "token_counts": [5, 3]}
    ]
    return ModelSpec.model_validate(fields)


def test_each_place_of_a_step_has_its_own_number_of_tokens() -> None:
    fits, beyond = [[4, 2], [0, 0]], [[4, 2], [2, 3]]
    both, reader = pairs_of_tokens(), StepsReader(pairs_of_tokens())
    assert read_inputs(JSON, msgspec.Raw(JSON.encode(fits)), both).tolist() == fits
    assert reader.read(JSON.encode({"inputs": fits}))[1].tolist() == fits
    with pytest.raises(InvalidInput, match=r"^inputs\[1\]\[1\]: no such token: 3. Expected an id from 0 to 2,"):
        read_inputs(JSON, msgspec.Raw(JSON.encode(beyond)), both)
    with pytest.raises(ValueError, match="no such token"):
        reader.read(JSON.encode({"inputs": beyond}))


def test_token_counts_that_do_not_fit_the_step_are_refused() -> None:
    fields = pairs_of_tokens().model_dump()
    fields["inputs"][0]["token_counts"] = [5]
    with pytest.raises(ValueError, match="1 token counts do not fit"):
        ModelSpec.model_validate(fields)


def test_a_model_that_streams_has_states() -> None:
    fields = spec(1).model_dump()
    fields["states"] = []
    with pytest.raises(ValueError, match="without states cannot stream"):
        ModelSpec.model_validate(fields)
    assert ModelSpec.model_validate({**fields, "streaming": False}).state_bytes == 0
