"""Bounded bodies read as others do, and of a list that is too long no more than one item too many is made."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidInput
from service.protocol import bounded as module
from service.protocol.bodies import PredictBody, SequenceGenerateBody
from service.protocol.bounded import bounded, unbounded
from service.protocol.codec import JSON, MSGPACK, Codec, decode_body
from service.protocol.oip.bodies import InferBody

MOST = 4
CODECS = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=lambda codec: codec.name)
ODD = st.sampled_from([None, 5, -1, "a", "", [], {}, True])


def lists(item: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(item | ODD, max_size=MOST) | ODD


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=fields) | ODD


SEQUENCES = lists(objects(inputs=st.just([1]), state_token=ODD, other=st.just(1)))
TENSORS = lists(objects(name=st.just("x"), shape=lists(st.integers(-2, 2**54)), datatype=st.just("FP32"), data=ODD))
PARAMETERS = objects(sequence_ids=lists(st.just("a")), sequence_steps=lists(st.integers(-2, 2**54)), sequence_start=ODD)
DOCUMENTS = {
    PredictBody: objects(sequences=SEQUENCES, outputs=st.just("last")),
    SequenceGenerateBody: objects(inputs=st.just("a"), steps=st.just(1), stop=lists(st.just("a")), step=ODD),
    InferBody: objects(inputs=TENSORS, outputs=lists(objects(name=st.just("y"))), parameters=PARAMETERS, id=ODD),
}


@CODECS
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_short_lists_are_read_as_ever(codec: Codec, kind: type[msgspec.Struct]) -> None:
    @settings(max_examples=60)
    @given(DOCUMENTS[kind])
    def same(document: Any) -> None:
        body = codec.encode(document)
        expected, found = verdict(codec, kind, body), verdict(codec, bounded(kind, MOST), body)
        assert found == expected

    same()


def verdict(codec: Codec, kind: Any, body: bytes) -> Any:
    try:
        return plain(unbounded(codec.decoder(kind).decode(body)))
    except msgspec.ValidationError as error:
        # a list that is too short is told in other words
        return str(error).replace("of at least length 1, got 0", "of length >= 1")


def plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list):
        return list(map(plain, value))
    return bytes(value) if isinstance(value, msgspec.Raw) else value


@CODECS
def test_no_more_is_read_of_a_long_list_than_one_item_too_many(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    long = codec.encode({"sequences": [{"inputs": [1]}] * 20})
    assert len(decode_body(codec, PredictBody, long, MOST).sequences) == 20
    monkeypatch.setattr("service.protocol.codec.SHORT_BYTES", 100)
    assert len(decode_body(codec, PredictBody, long, MOST).sequences) == MOST + 1
    unread = codec.encode({"sequences": [{"inputs": [1]}] * (MOST + 1) + ["no sequence"] * 20})
    assert len(decode_body(codec, PredictBody, unread, MOST).sequences) == MOST + 1


@CODECS
def test_a_list_that_is_longer_than_its_type_allows_is_refused_by_its_place(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.protocol.codec.SHORT_BYTES", 10)
    for stops, fits in ((16, True), (17, False), (1000, False)):
        body = codec.encode({"inputs": "a", "steps": 1, "stop": ["a"] * stops})
        if fits:
            assert decode_body(codec, SequenceGenerateBody, body, MOST).stop == ["a"] * stops
            continue
        with pytest.raises(InvalidInput, match="length <= 16") as refused:
            decode_body(codec, SequenceGenerateBody, body, MOST)
        assert refused.value.fields["place"] == "stop"


def test_lists_that_an_operator_wants_very_long_stay_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FIELDS", 3)
    assert bounded(PredictBody, 17) is PredictBody
