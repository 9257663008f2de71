from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import httpx
import msgspec
import pytest

from tests.service.api.clients import BIDIR, LSTM, SUM, TOKENS, problem_of

pytestmark = pytest.mark.anyio


async def predict(client: httpx.AsyncClient, model: str, *sequences: Any, **fields: Any) -> httpx.Response:
    return await client.post(f"/v1/models/{model}/predict", json={"sequences": list(sequences), **fields})


async def test_ragged_sequences_are_answered_in_order_with_their_final_states(client: httpx.AsyncClient) -> None:
    first = {"inputs": [[1, 2], [3, 4], [5, 6]]}
    second = {"inputs": [[10, 20]], "initial_state": {"h": [[1, 2]]}}
    answer = (await predict(client, SUM, first, second)).json()
    assert all(sequence.pop("state_token") for sequence in answer["sequences"])
    assert answer == {
        "model": SUM,
        "version": 1,
        "sequences": [
            {"outputs": [[1, 2], [4, 6], [9, 12]], "steps": 3, "final_state": {"h": [[9, 12]]}},
            {"outputs": [[11, 22]], "steps": 1, "final_state": {"h": [[11, 22]]}},
        ],
    }


@pytest.mark.parametrize(("outputs", "expected"), [("all", [[1, 2], [4, 6]]), ("last", [[4, 6]]), ("none", [])])
async def test_outputs_says_which_are_answered(client: httpx.AsyncClient, outputs: str, expected: Any) -> None:
    answer = await predict(client, SUM, {"inputs": [[1, 2], [3, 4]]}, outputs=outputs, return_state=False)
    assert answer.json()["sequences"] == [{"outputs": expected, "steps": 2}]


async def test_token_models_take_ids(client: httpx.AsyncClient) -> None:
    answer = await predict(client, TOKENS, {"inputs": [1, 1, 4]}, outputs="last")
    assert answer.json()["sequences"][0]["outputs"] == [[0, 2, 0, 0, 1]]


async def test_chunks_from_state_to_state_equal_the_whole_bit_for_bit(client: httpx.AsyncClient) -> None:
    inputs = [[0.1 * t, -0.2, 0.3 / (t + 1)] for t in range(13)]
    whole = (await predict(client, LSTM, {"inputs": inputs})).json()["sequences"][0]
    first = (await predict(client, LSTM, {"inputs": inputs[:5]})).json()["sequences"][0]
    rest = {"inputs": inputs[5:], "initial_state": first["final_state"]}
    second = (await predict(client, LSTM, rest)).json()["sequences"][0]
    assert first["outputs"] + second["outputs"] == whole["outputs"]
    assert second["final_state"] == whole["final_state"]


async def test_bidirectional_models_take_whole_sequences(client: httpx.AsyncClient) -> None:
    answer = await predict(client, BIDIR, {"inputs": [[1, 2, 3]] * 3})
    assert len(answer.json()["sequences"][0]["outputs"]) == 3


async def test_messagepack_in_messagepack_out(client: httpx.AsyncClient) -> None:
    body = msgspec.msgpack.encode({"sequences": [{"inputs": [[1, 2], [3.5, 4]]}]})
    headers = {"content-type": "application/msgpack"}
    answer = await client.post(f"/v1/models/{SUM}/predict", content=body, headers=headers)
    assert answer.headers["content-type"] == "application/msgpack"
    decoded = msgspec.msgpack.decode(answer.content)
    assert decoded["sequences"][0].pop("state_token")
    assert decoded["sequences"] == [{"outputs": [[1, 2], [4.5, 6]], "steps": 2, "final_state": {"h": [[4.5, 6]]}}]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
async def test_bodies_may_be_compressed(client: httpx.AsyncClient, encoding: str) -> None:
    body = json.dumps({"sequences": [{"inputs": [[1, 2]]}]}).encode()
    packed = {"gzip": gzip.compress(body), "deflate": zlib.compress(body), "identity": body}[encoding]
    headers = {"content-encoding": encoding, "content-type": "application/json; charset=utf-8"}
    answer = await client.post(f"/v1/models/{SUM}/predict", content=packed, headers=headers)
    assert answer.json()["sequences"][0]["outputs"] == [[1, 2]]


@pytest.mark.parametrize(
    ("model", "inputs", "place", "says"),
    [
        (SUM, "[[1, 2], [3]]", "[1]", "got 1"),
        (SUM, "[[1, 2], [3, 4, 5]]", "[1]", "got 3"),
        (SUM, "[[1, 2, 3]]", "[0]", "expected a list of 2 numbers, got 3"),
        (SUM, "[1, 2]", "[0]", "expected a list of 2 numbers, got 1"),
        (SUM, "[[[1, 2]]]", "[0]", "got 1"),
        (SUM, "[[[1], [2]]]", "[0][0]", "a list of 1"),
        (SUM, "[]", "", "at least one step"),
        (SUM, "[[]]", "[0]", "got 0"),
        (SUM, "null", "", "null"),
        (SUM, '"x"', "", "a string"),
        (SUM, '{"a": 1}', "", "an object"),
        (SUM, "[[1, true]]", "[0][1]", "got true"),
        (SUM, "[[1, null]]", "[0][1]", "got null"),
        (SUM, '[[1, "2"]]', "[0][1]", "got a string"),
        (SUM, "[[1, 2], [1e39, 2]]", "[1][0]", "float32"),
        (SUM, "[[1, 1e400]]", "[0][1]", "float32"),
        (SUM, f"[[1, {10**400}]]", "[0][1]", "float32"),
        (SUM, "[[1, 2], [3, NaN]]", "[1][1]", "NaN"),
        (SUM, "[[-Infinity, 2]]", "[0][0]", "Infinity"),
        (TOKENS, "[0, 5]", "[1]", "0 to 4"),
        (TOKENS, "[-1]", "[0]", "0 to 4"),
        (TOKENS, f"[0, {2**63}]", "[1]", "beyond 64 bits"),
        (TOKENS, f"[0, {10**30}]", "[1]", "beyond 64 bits"),
        (TOKENS, f"[0, {'1' * 5000}]", "[1]", "beyond 64 bits"),
        (SUM, f"[[1, {'1' * 5000}]]", "[0][1]", "float32"),
        (TOKENS, "[0, 1.5]", "[1]", "token id"),
        (TOKENS, "[[0.5, 1]]", "[0]", "token id"),
        (TOKENS, "[true]", "[0]", "got true"),
    ],
)
async def test_inputs_that_do_not_fit_are_refused_with_their_place(
    client: httpx.AsyncClient, model: str, inputs: str, place: str, says: str
) -> None:
    good = "[0]" if model == TOKENS else "[[1, 2]]"
    body = f'{{"sequences": [{{"inputs": {good}}}, {{"inputs": {inputs}}}]}}'
    answer = await client.post(f"/v1/models/{model}/predict", content=body)
    problem = problem_of(answer, 422, "invalid_input")
    assert problem["detail"].startswith(f"sequences[1].inputs{place}")
    assert says in problem["detail"]
    assert problem["index"] == 1
    assert {"expected", "received"} <= problem.keys()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"c": [[1, 2]]},
        {"h": [[1, 2]], "c": [[1, 2]]},
        {"h": [[1]]},
        {"h": [1, 2]},
        {"h": [[1, 1e39]]},
        {"h": None},
        [],
    ],
)
async def test_states_that_do_not_fit_are_refused_with_the_expected_shapes(
    client: httpx.AsyncClient, state: Any
) -> None:
    answer = await predict(client, SUM, {"inputs": [[1, 2]], "initial_state": state})
    problem = problem_of(answer, 422, "invalid_state")
    assert problem["expected"] in ({"h": [1, 2]}, [1, 2])
    assert problem["index"] == 0


async def test_a_result_that_is_not_finite_is_refused(client: httpx.AsyncClient) -> None:
    answer = await predict(client, SUM, {"inputs": [[1, 2]]}, {"inputs": [[3e38, 0], [3e38, 0]]})
    assert problem_of(answer, 422, "non_finite_result")["index"] == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_request"),
        (b"hello", 400, "malformed_request"),
        (b'{"sequences": [{"inputs": [[1, 2]]}]', 400, "malformed_request"),
        (b'{"sequences": 5, ', 400, "malformed_request"),
        (b'{"sequences": [{"inputs": [[1 2]]}]}', 400, "malformed_request"),
        (b'{"sequences": [{"inputs": [[1, 2]]}], "outputs": "\xff"}', 400, "malformed_request"),
        (b'{"sequences": [{"inputs": [[1, 2]]}], "beams": 3}', 400, "malformed_request"),
        (b'{"sequences": [{"inputs": [[1, 2]], "state_tokens": "x"}]}', 400, "malformed_request"),
        (b'{"sequences": [{"inputs": ' + b"[" * 40_000 + b"]" * 40_000 + b"}]}", 400, "malformed_request"),
        (b"[" * 90_000, 400, "malformed_request"),
        (b"[]", 422, "invalid_input"),
        (b'{"sequences": []}', 422, "invalid_input"),
        (b'{"sequences": [{}]}', 422, "invalid_input"),
        (b'{"sequences": [{"inputs": [[1, 2]]}], "outputs": "some"}', 422, "invalid_input"),
        (b'{"sequences": [{"inputs": [[1, 2]]}], "return_state": 1}', 422, "invalid_input"),
    ],
)
async def test_bodies_that_cannot_be_read(client: httpx.AsyncClient, body: bytes, status: int, code: str) -> None:
    problem_of(await client.post(f"/v1/models/{SUM}/predict", content=body), status, code)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "json"]
)
async def test_other_content_types_are_refused(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post(f"/v1/models/{SUM}/predict", content=b"{}", headers={"content-type": kind})
    problem_of(answer, 400, "malformed_request")


@pytest.mark.parametrize("kind", [None, "application/json", "Application/JSON;charset=UTF-8", "application/vnd.x+json"])
async def test_json_by_any_name_is_taken(client: httpx.AsyncClient, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    body = b'{"sequences": [{"inputs": [[1, 2]]}]}'
    assert (await client.post(f"/v1/models/{SUM}/predict", content=body, headers=headers)).status_code == 200


async def test_limits_are_named(client: httpx.AsyncClient) -> None:
    many = await predict(client, SUM, *[{"inputs": [[1, 2]]}] * 9)
    assert problem_of(many, 413, "too_large")["limit"] == 8
    long = await predict(client, SUM, {"inputs": [[1, 2]] * 600}, {"inputs": [[1, 2]] * 600})
    assert problem_of(long, 413, "too_large")["limit"] == 1000
    large = await client.post(f"/v1/models/{SUM}/predict", content=b" " * 100_001)
    assert problem_of(large, 413, "too_large")["limit"] == 100_000


async def test_a_body_without_a_length_is_counted_while_it_is_read(client: httpx.AsyncClient) -> None:
    async def pieces() -> Any:
        for _ in range(11):
            yield b" " * 10_000

    problem_of(await client.post(f"/v1/models/{SUM}/predict", content=pieces()), 413, "too_large")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compression_bomb_is_not_unpacked(client: httpx.AsyncClient, encoding: str) -> None:
    bomb = b" " * 50_000_000
    packed = gzip.compress(bomb) if encoding == "gzip" else zlib.compress(bomb)
    headers = {"content-encoding": encoding}
    problem_of(await client.post(f"/v1/models/{SUM}/predict", content=packed, headers=headers), 413, "too_large")


@pytest.mark.parametrize(
    "packed", [b"not gzip", gzip.compress(b"{}", mtime=0)[:-3], gzip.compress(b"{}", mtime=0) + b"more"]
)
async def test_broken_compression_is_a_malformed_request(client: httpx.AsyncClient, packed: bytes) -> None:
    headers = {"content-encoding": "gzip"}
    problem_of(
        await client.post(f"/v1/models/{SUM}/predict", content=packed, headers=headers), 400, "malformed_request"
    )


async def test_unknown_encodings_are_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"/v1/models/{SUM}/predict", content=b"{}", headers={"content-encoding": "br"})
    assert problem_of(answer, 415, "unsupported_encoding")["received"] == "br"


async def test_versions(client: httpx.AsyncClient) -> None:
    body = {"sequences": [{"inputs": [[1, 2]]}]}
    assert (await client.post(f"/v1/models/{SUM}/predict?version=1", json=body)).status_code == 200
    missing = await client.post(f"/v1/models/{SUM}/predict?version=7", json=body)
    assert problem_of(missing, 404, "version_not_found")["expected"] == [1]
    problem_of(await client.post(f"/v1/models/{SUM}/predict?version=one", json=body), 422, "invalid_input")
    problem_of(await client.post("/v1/models/nobody/predict", json=body), 404, "model_not_found")


async def test_a_deadline_header_that_is_no_number_is_refused(client: httpx.AsyncClient) -> None:
    body, headers = {"sequences": [{"inputs": [[1, 2]]}]}, {"x-request-timeout-ms": "soon"}
    problem_of(await client.post(f"/v1/models/{SUM}/predict", json=body, headers=headers), 422, "invalid_input")
