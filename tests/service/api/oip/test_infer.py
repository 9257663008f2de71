"""Inference without a sequence: the caller carries the state."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.api.clients import BIDIR, LSTM, SUM, TOKENS
from tests.service.api.oip.calls import JSON_LENGTH, error_of, infer, outputs_of, post, post_binary, tensor

pytestmark = pytest.mark.anyio
URL = f"/v2/models/{SUM}/infer"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5, 3)).astype(np.float32)


async def test_rows_begin_from_zeros_and_the_final_states_come_back(client: httpx.AsyncClient) -> None:
    outputs = await infer(client, SUM, tensor("x", [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]))
    assert outputs["y"].tolist() == [[[1, 2], [4, 6]], [[5, 6], [12, 14]]]
    assert outputs["h_next"].tolist() == [[[4, 6]], [[12, 14]]]


async def test_states_that_are_carried_along_give_one_long_run_bit_for_bit(client: httpx.AsyncClient) -> None:
    whole = await infer(client, LSTM, tensor("x", X))
    first = outputs_of(await post_binary(client, LSTM, X[:, :2]))
    states = [tensor("c", first["c_next"]), tensor("h", first["h_next"])]
    second = await infer(client, LSTM, *states, tensor("x", X[:, 2:]))
    assert first["h_next"].shape == (3, 2, 8)
    assert np.concatenate([first["y"], second["y"]], axis=1).tobytes() == whole["y"].tobytes()
    for state in ("h_next", "c_next"):
        assert second[state].tobytes() == whole[state].tobytes()


async def test_both_doors_give_the_same_bits(client: httpx.AsyncClient) -> None:
    outputs = outputs_of(await post_binary(client, LSTM, X))
    sequences = [{"inputs": row.tolist()} for row in X]
    native = (await client.post(f"/v1/models/{LSTM}/predict", json={"sequences": sequences})).json()["sequences"]
    assert outputs["y"].tobytes() == np.array([row["outputs"] for row in native], np.float32).tobytes()


@pytest.mark.parametrize(
    ("parameters", "outputs", "binary"),
    [
        ({}, None, []),
        ({"binary_data_output": True}, None, ["y", "h_next"]),
        ({}, [{"name": "y"}], []),
        ({}, [{"name": "h_next", "parameters": {"binary_data": True}}, {"name": "y"}], ["h_next"]),
        (
            {"binary_data_output": True},
            [{"name": "y", "parameters": {"binary_data": False}}, {"name": "h_next"}],
            ["h_next"],
        ),
        ({"binary_data_output": True}, [{"name": "h_next"}], ["h_next"]),
    ],
)
async def test_the_caller_chooses_outputs_and_their_form(
    client: httpx.AsyncClient, parameters: dict[str, Any], outputs: Any, binary: list[str]
) -> None:
    fields = {"outputs": outputs} if outputs else {}
    answer = await post(client, SUM, tensor("x", [[[1, 2], [3, 4]]]), parameters=parameters, id="q-1", **fields)
    found, names = outputs_of(answer), [output["name"] for output in outputs or [{"name": "y"}, {"name": "h_next"}]]
    assert list(found) == names, "in the order asked for"
    head = answer.content[: int(answer.headers.get(JSON_LENGTH, len(answer.content)))]
    assert head.count(b'"binary_data_size"') == len(binary)
    assert answer.headers.get(JSON_LENGTH, "") == (str(len(head)) if binary else "")
    assert b'"id":"q-1"' in head
    expected = {"y": [[[1, 2], [4, 6]]], "h_next": [[[4, 6]]]}
    for name, values in found.items():
        assert values.tolist() == expected[name]


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "text/plain", "application/json"])
async def test_a_raw_body_is_the_input(client: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {JSON_LENGTH: "0", **({"content-type": content_type} if content_type else {})}
    values = np.array([[1, 2], [3, 4]], np.float32)
    outputs = outputs_of(await client.post(URL, content=values.tobytes(), headers=headers))
    assert outputs["y"].tolist() == [[[1, 2], [4, 6]]]


@pytest.mark.parametrize(("encoding", "deflate"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_lengths_are_those_of_the_inflated_body(
    client: httpx.AsyncClient, encoding: str, deflate: Callable[[bytes], bytes]
) -> None:
    plain = await post_binary(client, LSTM, X)
    sent = plain.request
    headers = {JSON_LENGTH: sent.headers[JSON_LENGTH], "content-encoding": encoding}
    answer = await client.post(sent.url, content=deflate(sent.content), headers=headers)
    assert answer.content == plain.content
    error_of(await client.post(sent.url, content=sent.content, headers={**headers, "content-encoding": "br"}), 501)
    error_of(await client.post(sent.url, content=sent.content, headers=headers), 400, "not compressed")
    bomb = deflate(bytes(10_000_000))
    assert error_of(await client.post(sent.url, content=bomb, headers=headers), 413)["limit"] == 100_000


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("encoding", "inflate"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
async def test_an_answer_is_compressed_for_who_asks_for_that_alone(
    client: httpx.AsyncClient, encoding: str, inflate: Callable[[bytes], bytes], binary: bool
) -> None:
    request = {"inputs": [tensor("x", np.ones((8, 25, 2)))], "parameters": {"binary_data_output": binary}}
    plain = await client.post(URL, json=request)
    async with client.stream("POST", URL, json=request, headers={"Accept-Encoding": encoding}) as answer:
        body = b"".join([piece async for piece in answer.aiter_raw()])
    assert (answer.headers["content-encoding"], inflate(body)) == (encoding, plain.content)
    assert len(body) < len(plain.content) / 2
    assert answer.headers.get(JSON_LENGTH) == plain.headers.get(JSON_LENGTH)
    assert "content-encoding" not in plain.headers, "httpx lists all codings that it can read"


async def test_tokens_are_numbers_or_their_texts(client: httpx.AsyncClient) -> None:
    by_number = await infer(client, TOKENS, tensor("x", [[0, 1, 1]], "i8"))
    vocabulary = (await client.get(f"/v1/models/{TOKENS}")).json()["inputs"][0]["vocabulary"]
    texts = {"name": "x", "datatype": "BYTES", "shape": [1, 3], "data": [vocabulary[n] for n in (0, 1, 1)]}
    by_text = await infer(client, TOKENS, texts)
    assert by_text["y"].tolist() == by_number["y"].tolist()


async def test_a_model_that_cannot_be_stepped_sees_whole_sequences(client: httpx.AsyncClient) -> None:
    assert (await infer(client, BIDIR, tensor("x", X)))["y"].shape[:2] == (3, 5)


GOOD = tensor("x", [[[1, 2]]])


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not valid JSON"),
        (b"[]", 400, "expected `object`"),
        (b"{}", 400, "inputs"),
        (b'{"inputs": [{"name": "x", "shape": [1, 1, 2], "datatype": "FP32", "data": [1, NaN]}]}', 400, "finite"),
        (b'{"inputs": [{"name": "x", "shape": [1, 1, 2], "datatype": "FP32", "data": [1]}]}', 400, "x"),
        (b'{"inputs": [{"name": "x", "shape": [1, 1, 99999999999999999999], "datatype": "FP32"}]}', 400, "shape"),
        (b'{"inputs": [{"name": "x", "shape": [9, 1, 2], "datatype": "FP32", "data": []}]}', 413, "sequences"),
        (b'{"inputs": [{"name": "x", "shape": [1, 9007199254740991, 2], "datatype": "FP32"}]}', 413, "steps"),
        (b'{"inputs": [], "parameters": {"sequence_id": 1.5}}', 400, "sequence_id"),
        (b"\xff\xfe", 400, "not valid JSON"),
        (b"[" * 5000, 400, ""),
    ],
)
async def test_a_bad_body_is_refused_with_the_reason(
    client: httpx.AsyncClient, body: bytes, status: int, words: str
) -> None:
    error_of(await client.post(URL, content=body), status, words)


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "", "9" * 400, "5.0", "5000"])
async def test_a_bad_header_length_is_refused(client: httpx.AsyncClient, length: str) -> None:
    sent = (await post(client, SUM, GOOD)).request.content
    error_of(await client.post(URL, content=sent, headers={JSON_LENGTH: length}), 400)


@pytest.mark.parametrize("version", ["2", "0", "x"])
async def test_a_version_that_is_not_there_is_a_404(client: httpx.AsyncClient, version: str) -> None:
    error_of(await post(client, f"{SUM}/versions/{version}", GOOD), 404)
    assert (await infer(client, f"{SUM}/versions/1", GOOD))["y"].tolist() == [[[1, 2]]]


async def test_a_result_that_is_not_finite_is_a_422(client: httpx.AsyncClient) -> None:
    error = error_of(await post(client, SUM, tensor("x", [[[3e38, 0], [3e38, 0]]])), 422)
    assert (error["code"], error["last_good_step"]) == ("non_finite_result", 0)


async def test_a_deadline_that_passed_is_a_504(client: httpx.AsyncClient) -> None:
    long = tensor("x", np.zeros((1, 1000, 2)))
    error_of(await post(client, SUM, long, parameters={"timeout": 1}), 504, "Row 0: The deadline")
    assert (await infer(client, SUM, long, parameters={"timeout": 60_000_000}))["y"].shape == (1, 1000, 2)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_another_method_is_a_405(client: httpx.AsyncClient, method: str) -> None:
    assert error_of(await client.request(method, URL), 405)["expected"] == ["POST"]
