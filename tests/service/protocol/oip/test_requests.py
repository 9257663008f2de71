"""The codec by itself: any mixture of JSON and binary tensors, in any order, comes out as it went in."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.errors import CarouselError, InvalidInput, MalformedRequest
from service.model_spec import ModelSpec
from service.protocol.oip.requests import Inference, fit_to_model, open_envelope
from service.protocol.oip.tensors import ACCEPTED

STATES = [
    {"name": "z", "input": "z", "output": "z_next", "shape": [2, "batch", 3]},
    {"name": "a", "input": "a", "output": "a_next", "shape": ["batch", 1, 4]},
]
NUMPY = {"FP32": "f4", "FP16": "f2", "INT64": "i8", "INT32": "i4", "INT16": "i2", "INT8": "i1"}
NUMPY |= {"UINT32": "u4", "UINT16": "u2", "UINT8": "u1"}
FINITE = st.floats(-(2.0**99), 2.0**99, width=32)


def spec(*step_shape: int, vocabulary: str | None = None) -> ModelSpec:
    tokens = {"kind": "token", "vocabulary": list(vocabulary)} if vocabulary else {}
    x = {"name": "x", "dtype": "int64" if vocabulary else "float32", "shape": ["batch", "time", *step_shape], **tokens}
    y = {"name": "y", "dtype": "float32", "shape": ["batch", "time", 2]}
    base = {"format": 1, "name": "m", "task": "t", "cell": "c", "layers": 1, "hidden_size": 1, "parameters": 0}
    fields = {"streaming": True, "inputs": [x], "outputs": [y], "states": STATES, "created_at": "2026"}
    return ModelSpec.model_validate_json(orjson.dumps({**base, **fields}))


MODEL, TOKENS = spec(3), spec(vocabulary="abc")


def body_of(tensors: list[tuple[str, str, np.ndarray[Any, Any], str]], **fields: Any) -> tuple[bytes, int | None]:
    """Each tensor is (name, datatype, values, how): how is binary, flat or nested."""
    inputs, buffers = [], b""
    for name, datatype, values, how in tensors:
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": values.shape}
        if how == "binary":
            raw = values.tobytes() if values.dtype != object else b"".join(map(with_length, values.ravel()))
            tensor["parameters"] = {"binary_data_size": len(raw)}
            buffers += raw
        else:
            tensor["data"] = values.ravel().tolist() if how == "flat" else values.tolist()
        inputs.append(tensor)
    head = orjson.dumps({"inputs": inputs, **fields})
    return head + buffers, len(head) if buffers else None


def with_length(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def read(body: bytes, json_bytes: int | None, model: ModelSpec = MODEL) -> Inference:
    return fit_to_model(open_envelope(body, json_bytes), model, lambda rows, steps: None, with_states=True)


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[str, str, np.ndarray[Any, Any], str]]:
    rows, steps = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    shapes = {"x": (rows, steps, 3), "z": (rows, 2, 3), "a": (rows, 1, 4)}
    names = draw(st.sampled_from([["x"], ["x", "z", "a"], ["a", "x", "z"], ["z", "a", "x"]]))
    how = st.sampled_from(["binary", "flat", "nested"])
    return [(n, "FP32", draw(arrays(np.float32, shapes[n], elements=FINITE)), draw(how)) for n in names]


@given(requests())
def test_every_mixture_and_order_comes_out_as_it_went_in(
    tensors: list[tuple[str, str, np.ndarray[Any, Any], str]],
) -> None:
    inference = read(*body_of(tensors))
    sent = {name: values for name, _, values, _ in tensors}
    assert inference.inputs.dtype == np.float32
    assert inference.inputs.tobytes() == sent["x"].tobytes()
    if len(sent) == 1:
        assert inference.states is None
        return
    assert inference.states is not None
    for row, (z, a) in enumerate(inference.states):
        assert (z.tobytes(), a.tobytes()) == (sent["z"][row].tobytes(), sent["a"][row].tobytes())


@pytest.mark.parametrize("how", ["binary", "flat", "nested"])
@pytest.mark.parametrize(("model", "dtype"), [(MODEL, "float32"), (TOKENS, "int64")])
def test_types_that_lose_nothing_are_taken(model: ModelSpec, dtype: str, how: str) -> None:
    for datatype in ACCEPTED[dtype]:
        if datatype == "BF16" or (datatype == "FP16" and how != "binary"):
            continue
        values = np.array([[2, 0, 1]], NUMPY[datatype])
        values = values if dtype == "int64" else values[None]
        inputs = read(*body_of([("x", datatype, values, how)]), model).inputs
        assert inputs.dtype == dtype
        assert inputs.tolist() == values.tolist()


def test_bf16_is_the_upper_half_of_fp32() -> None:
    values = np.array([[[1.5, -2.0, 3.140625]]], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert read(*body_of([("x", "BF16", upper, "binary")])).inputs.tolist() == values.tolist()


def test_beside_a_required_state_the_others_may_be_left_out() -> None:
    states = [{**state, "required": state["name"] == "z"} for state in STATES]
    model = ModelSpec.model_validate_json(orjson.dumps({**MODEL.model_dump(mode="json"), "states": states}))
    x, z, a = np.ones((2, 1, 3), "f4"), np.full((2, 2, 3), 5, "f4"), np.ones((2, 1, 4), "f4")
    inference = read(*body_of([("x", "FP32", x, "binary"), ("z", "FP32", z, "flat")]), model)
    assert inference.states is not None
    assert [(row[0].tolist(), row[1].any()) for row in inference.states] == [(z[0].tolist(), False)] * 2
    with pytest.raises(InvalidInput, match="expected 'x' once"):
        read(*body_of([("x", "FP32", x, "binary"), ("a", "FP32", a, "flat")]), model)


@pytest.mark.parametrize("how", ["binary", "flat", "nested"])
def test_tokens_may_be_sent_as_their_texts(how: str) -> None:
    inference = read(*body_of([("x", "BYTES", np.array([["c", "a"], ["b", "b"]], object), how)]), TOKENS)
    assert inference.inputs.tolist() == [[2, 0], [1, 1]]


def test_binary_data_are_not_copied() -> None:
    body, json_bytes = body_of([("x", "FP32", np.ones((1, 2, 3), np.float32), "binary")])
    base = read(body, json_bytes).inputs.base
    while isinstance(base, np.ndarray):
        base = base.base
    assert base is body


@given(st.binary(max_size=64).filter(lambda body: len(body) % 12 or not body))
def test_a_raw_body_is_whole_steps(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="12 bytes a step"):
        read(body, 0)


def test_a_raw_body_is_the_input_of_one_row() -> None:
    values = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    inference = read(values.tobytes(), 0)
    assert inference.inputs.tolist() == values.tolist()
    assert [(asked.name, asked.is_binary) for asked in inference.outputs] == [
        ("y", True),
        ("z_next", True),
        ("a_next", True),
    ]


GOOD = {"name": "x", "datatype": "FP32", "shape": [1, 1, 3], "data": [1, 2, 3]}
BAD_INPUTS = {
    "expected 'x' once": [[], [GOOD, GOOD], [{**GOOD, "name": "u"}], [GOOD, {**GOOD, "name": "z"}]],
    "expected datatype FP32 or": [[{**GOOD, "datatype": "FP64"}], [{**GOOD, "datatype": "fp32"}]],
    "expected shape": [
        [{**GOOD, "shape": shape}] for shape in ([3], [1, 3], [1, 3, 1], [0, 1, 3], [1, 0, 3], [1, 1, 1, 3])
    ],
    "either data or": [
        [{"name": "x", "datatype": "FP32", "shape": [1, 1, 3]}],
        [{**GOOD, "parameters": {"binary_data_size": 0}}],
    ],
    "a list of 3 numbers": [[{**GOOD, "data": data}] for data in ([1, 2], [1, 2, 3, 4], [], "123", {})],
    "expected a number, got": [[{**GOOD, "data": data}] for data in ([1, None, 3], [1, [2], 3], [True, 1, 2])],
    r"x\[0\]\[0\]": [[{**GOOD, "data": data}] for data in ([[[1, 2]]], [[[1, 2, "3"]]])],
    "expected a list of 1": [[{**GOOD, "data": data}] for data in ([[[1, 2, 3], [1, 2, 3]]], [[], []])],
    "beyond float32": [[{**GOOD, "data": [1, 2, 3e38 * 2]}], [{**GOOD, "data": [1, 1e39, 2]}]],
    "no form in JSON": [[{**GOOD, "datatype": datatype}] for datatype in ("FP16", "BF16")],
    "beyond INT8": [[{**GOOD, "datatype": "INT8", "data": [1, 2, 128]}]],
    "shared memory": [[{**GOOD, "parameters": {"shared_memory_region": "r"}}]],
}


@pytest.mark.parametrize(("words", "inputs"), [(words, case) for words, cases in BAD_INPUTS.items() for case in cases])
def test_what_does_not_fit_is_refused_with_the_reason(words: str, inputs: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        read(orjson.dumps({"inputs": inputs}), None)
    orjson.dumps(caught.value.fields)


@pytest.mark.parametrize(
    "outputs",
    [[{"name": "u"}], [{"name": "y"}, {"name": "y"}], [{"name": "y", "parameters": {"classification": 2}}]],
)
def test_outputs_that_are_not_there_are_refused(outputs: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidInput, match="outputs: "):
        read(orjson.dumps({"inputs": [GOOD], "outputs": outputs}), None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "z"])
def test_non_finite_numbers_are_refused_with_their_place(name: str, value: float) -> None:
    tensors = {"x": np.zeros((1, 1, 3), "f4"), "z": np.zeros((1, 2, 3), "f4"), "a": np.zeros((1, 1, 4), "f4")}
    tensors[name][0, -1, 2] = value
    with pytest.raises(InvalidInput) as caught:
        read(*body_of([(n, "FP32", values, "binary") for n, values in tensors.items()]))
    assert caught.value.fields["place"] == f"{name}[0][{tensors[name].shape[1] - 1}][2]"


@pytest.mark.parametrize("how", ["binary", "flat", "nested"])
def test_tokens_beyond_the_vocabulary_are_refused_with_their_place(how: str) -> None:
    with pytest.raises(InvalidInput, match=r"x\[1\]\[0\]: no such token: 3"):
        read(*body_of([("x", "INT64", np.array([[0], [3]]), how)]), TOKENS)
    with pytest.raises(InvalidInput, match="'d', is not in the vocabulary"):
        read(*body_of([("x", "BYTES", np.array([["a", "d"]], object), how)]), TOKENS)


@given(st.integers(-40, 40).filter(bool))
def test_bytes_that_are_missing_or_left_over_are_counted(change: int) -> None:
    body, json_bytes = body_of([("x", "FP32", np.ones((1, 1, 3), np.float32), "binary")])
    body = body + bytes(change) if change > 0 else body[:change]
    with pytest.raises(CarouselError) as caught:
        read(body, json_bytes)
    assert str(caught.value.fields["received"]) in caught.value.message


@pytest.mark.parametrize("change", [-1, 1, 10_000])
def test_a_wrong_length_of_the_json_is_told(change: int) -> None:
    body, json_bytes = body_of([("x", "FP32", np.ones((1, 1, 3), np.float32), "binary")])
    assert json_bytes is not None
    with pytest.raises((InvalidInput, MalformedRequest)):
        read(body, json_bytes + change)


def test_a_binary_size_must_be_that_of_the_shape() -> None:
    body, json_bytes = body_of([("x", "FP32", np.ones((1, 2, 3), np.float32), "binary")])
    other = body.replace(b"[1,2,3]", b"[1,4,3]")
    with pytest.raises(InvalidInput, match="takes 48 bytes, binary_data_size says 24"):
        read(other, json_bytes)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01\x00\x00", b"\xff\xff\xff\xffa", with_length("a"), with_length("a") * 3, with_length("a") * 2 + b"x"],
)
def test_texts_with_wrong_lengths_are_refused(data: bytes) -> None:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1, 2], "parameters": {"binary_data_size": len(data)}}
    head = orjson.dumps({"inputs": [tensor]})
    with pytest.raises(InvalidInput, match="expected 2 elements of BYTES"):
        read(head + data, len(head), TOKENS)


@pytest.mark.parametrize("how", ["flat", "nested"])
@pytest.mark.parametrize("shape", [(1, 60, 3), (20, 3, 3), (2, 30, 3)])
def test_large_json_is_read_in_pieces_to_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, how: str, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr("service.protocol.oip.tensors.LARGE_BYTES", 200)
    monkeypatch.setattr("service.protocol.oip.tensors._BLOCK_BYTES", 64)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert read(*body_of([("x", "FP32", values, how)])).inputs.tobytes() == values.tobytes()
    ragged = orjson.dumps({"inputs": [{**GOOD, "shape": shape, "data": [*values.ravel().tolist(), "1"]}]})
    with pytest.raises(InvalidInput, match="a list of 180 numbers"):
        read(ragged, None)
