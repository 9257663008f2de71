"""The binary form is what its documentation says, byte for byte; what is not of that form is named, never met."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import InvalidInput, MalformedRequest
from service.protocol import frames
from service.protocol.frame_answers import Deleted, Failed, FrameWriter, ManyStepped, Opened, Stepped
from service.protocol.frames import DELETE, OPEN, STEP, FrameReader
from tests.service import wire
from tests.service.protocol.specs import spec

SPEC = spec(2)
READER, WRITER = FrameReader(SPEC), FrameWriter(SPEC)
BIG = 2**20
EXAMPLE = re.compile(r"^ {4}((?:[0-9a-f]{2} +)+)", re.MULTILINE)

WHO = {"handle": st.integers(0, 2**32 - 1), "tag": st.integers(0, 2**32 - 1)}
FLOAT = st.floats(width=32, allow_nan=False)
STEPPED = st.builds(
    lambda handle, tag, step, outputs, state, replayed, expires_at: Stepped(
        handle,
        tag,
        step,
        np.array(outputs, np.float32).reshape(-1, 1),
        (np.array([state], np.float32),) if state else None,
        replayed,
        expires_at,
    ),
    **(WHO | {"handle": st.integers(0, 3)}),
    step=st.integers(0, 2**53),
    outputs=st.lists(FLOAT, max_size=3),
    state=st.none() | st.lists(FLOAT, min_size=2, max_size=2),
    replayed=st.booleans(),
    expires_at=st.none() | st.floats(0, 1e10),
)
FAILED = st.builds(Failed, **(WHO | {"handle": st.integers(0, 3)}), status=st.just(409), document=st.just(b'{"a": 1}'))
DELETED = st.builds(Deleted, **(WHO | {"handle": st.integers(0, 3)}))
OPENED = st.builds(Opened, **(WHO | {"handle": st.integers(0, 3)}), step=st.integers(0, 2**53), expires_at=FLOAT)


def documented() -> list[bytes]:
    """The messages of the example in the module's documentation."""
    data = bytes.fromhex("".join(EXAMPLE.findall(frames.__doc__ or "")))
    first = int.from_bytes(data[4:8], "little")
    return [data[:first], data[first:]]


def test_the_documented_example_is_read_and_answered_so() -> None:
    asked, answered = documented()
    (block,) = READER.read(asked)
    assert (block.kind, block.start, block.commit, block.outputs, block.steps_each) == (STEP, True, True, "all", 1)
    assert block.records["handle"].tolist() == [0, 1]
    assert block.records["tag"].tolist() == [7, 8]
    assert block.steps() == [0, 0]
    inputs = block.inputs(SPEC.input)
    assert np.array(inputs).tolist() == [[[1.0, 2.0]], [[3.0, 4.0]]]
    adds_up = FrameWriter(SPEC.model_copy(update={"outputs": SPEC.inputs}))
    told = [Stepped(n, 7 + n, 1, x, None, False) for n, x in enumerate(inputs)]
    assert list(adds_up.write(told, BIG)) == [answered]
    assert wire.message(wire.step_block([(0, 7, 0, (1, 2)), (1, 8, 0, (3, 4))], flags=wire.START)) == asked


def test_every_kind_is_read() -> None:
    asked = wire.message(
        wire.open_block([(5, "pump-7"), (6, "x" * 128)]),
        wire.step_block([(5, 1, None, (1, 2, 3, 4))], steps=2, flags=wire.LAST | wire.STATE | wire.SCORE),
        wire.step_block([], flags=wire.NONE),
        wire.delete_block([6]),
    )
    opens, step, none, delete = READER.read(asked)
    assert [opens.kind, step.kind, none.kind, delete.kind] == [OPEN, STEP, STEP, DELETE]
    assert opens.records["id"].tolist() == [b"pump-7", b"x" * 128]
    assert (step.outputs, step.return_state, step.commit, step.start) == ("last", True, False, False)
    assert step.steps() == [None]
    assert (none.outputs, none.steps(), none.inputs(SPEC.input)) == ("none", [], [])
    assert delete.records["handle"].tolist() == [6]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "begins with CRB1"),
        (b"CRB2" + wire.message()[4:], "begins with CRB1"),
        (wire.message(wire.delete_block([1]))[:-1], "says 24 bytes, and 23 came"),
        (wire.message(b"\x02"), "block 0 breaks off in its head"),
        (wire.message(wire.delete_block([]), b"\x09" + bytes(7)), "block 1 is of kind 9"),
        (wire.message(wire.step_block([], flags=128)), "no such flags: 128"),
        (wire.message(wire.step_block([], flags=wire.LAST | wire.NONE)), "no such flags: 3"),
        (wire.message(wire.step_block([], steps=0)), "STEP with T = 0"),
        (wire.message(b"\x01\x00\x01\x00" + bytes(4)), "OPEN with T = 1"),
        (wire.message(b"\x02\x00\xff\xff\xff\xff\xff\xff"), "4294967295 records of 524296 bytes reach beyond"),
    ],
)
def test_what_cannot_be_read_is_named(data: bytes, says: str) -> None:
    with pytest.raises(MalformedRequest, match=says):
        READER.read(data)


@given(data=st.binary(max_size=64), cut=st.integers(0, 200), at=st.integers(0, 199), value=st.integers(0, 255))
@example(data=b"", cut=200, at=0, value=0)
def test_damage_is_refused_or_read_but_never_fatal(data: bytes, cut: int, at: int, value: int) -> None:
    good = bytearray(wire.message(wire.step_block([(n, n, n, (1, 2)) for n in range(4)]), wire.delete_block([1])))
    if at < len(good):
        good[at] = value
    for damaged in (data, b"CRB1" + data, bytes(good[:cut]) + data, wire.message(bytes(good[8:cut]) + data)):
        try:
            blocks = READER.read(damaged)
        except MalformedRequest:
            continue
        sizes = (len(block.records) * block.records.itemsize for block in blocks)
        assert 8 + 8 * len(blocks) + sum(sizes) == len(damaged)


def test_a_number_that_does_not_fit_is_the_fault_of_its_record_alone() -> None:
    rows = [(0, 0, 0, (1.0, 2.0, 3.0, 4.0)), (1, 1, 0, (1.0, 2.0, float("nan"), 4.0))]
    (block,) = READER.read(wire.message(wire.step_block(rows, steps=2)))
    good, bad = block.inputs(SPEC.input)
    assert isinstance(good, np.ndarray)
    assert isinstance(bad, InvalidInput)
    assert bad.fields["place"] == "inputs[1][0]"


@pytest.mark.parametrize(
    ("x", "sent", "place", "expected"),
    [
        ({"shape": ["batch", "time"], "vocabulary": ["a", "b"]}, (1, 0, 2), "inputs[2]", "0..1"),
        ({"shape": ["batch", "time", 2], "token_counts": [5, 3]}, (4, 2, 0, 0, 2, 3), "inputs[2][1]", "0..2"),
    ],
)
def test_a_token_that_is_not_there_is_named(
    x: dict[str, Any], sent: tuple[int, ...], place: str, expected: str
) -> None:
    tokens = type(SPEC).model_validate({**SPEC.model_dump(), "inputs": [{"name": "x", "dtype": "int64", **x}]})
    (block,) = FrameReader(tokens).read(wire.message(wire.step_block([(0, 0, 0, sent)], steps=3, number="q")))
    (bad,) = block.inputs(tokens.input)
    assert isinstance(bad, InvalidInput)
    assert bad.fields == {"place": place, "expected": expected, "received": sent[-1]}


@given(answers=st.lists(st.one_of(STEPPED, FAILED, DELETED, OPENED), max_size=20), max_bytes=st.integers(64, 500))
def test_answers_come_through_and_those_of_a_handle_in_order(answers: list[Any], max_bytes: int) -> None:
    messages = list(WRITER.write(answers, max_bytes))
    assert all(len(data) <= max(max_bytes, 8 + 8 + 16 + 8 + 8 + 3 * 4 + 8) for data in messages)
    told = [answer for data in messages for answer in wire.answers(data, 1, 2)]
    for handle in range(4):
        assert [a for a in told if a.handle == handle] == [expected(a) for a in answers if a.handle == handle]


def test_answers_to_many_come_as_blocks_that_fit_and_stay_in_order() -> None:
    handles, tags = np.arange(5, dtype=np.uint32), np.arange(10, 15, dtype=np.uint32)
    outputs = np.arange(10, dtype=np.float32).reshape(5, 2, 1)
    many = ManyStepped(handles, tags, [7, 8, 9, 10, 11], outputs)
    deleted = Deleted(3, 99)
    (whole,) = WRITER.write([deleted, many, deleted], BIG)
    cut = list(WRITER.write([deleted, many, deleted], 80))
    assert len(cut) > 2
    assert max(map(len, cut)) <= 80
    stepped = [wire.Answer("stepped", n, 10 + n, 7 + n, (2 * n, 2 * n + 1)) for n in range(5)]
    told = [wire.Answer("deleted", 3, 99), *stepped, wire.Answer("deleted", 3, 99)]
    assert wire.answers(whole, 1) == [answer for data in cut for answer in wire.answers(data, 1)] == told
    times = [1e9 + n for n in range(5)]
    (timed,) = WRITER.write([ManyStepped(handles, tags, many.steps, outputs, times)], BIG)
    assert [(answer.values, answer.expires_at) for answer in wire.answers(timed, 1)] == [
        (answer.values, 1e9 + n) for n, answer in enumerate(stepped)
    ]
    (none,) = WRITER.write([ManyStepped(handles, tags, [7] * 5, outputs[:, 2:])], BIG)
    assert [answer.values for answer in wire.answers(none, 1)] == [()] * 5


def expected(answer: Any) -> wire.Answer:
    who = answer.handle, answer.tag
    if isinstance(answer, Failed):
        return wire.Answer("error", *who, status=answer.status, problem=json.loads(answer.document))
    if isinstance(answer, Stepped):
        tensors = [answer.outputs, *(answer.state or ())]
        values = tuple(float(value) for tensor in tensors for value in tensor.ravel())
        return wire.Answer("stepped", *who, answer.step, values, answer.replayed, expires_at=answer.expires_at)
    return wire.Answer("opened", *who, answer.step) if isinstance(answer, Opened) else wire.Answer("deleted", *who)
