"""Sequences under /v2 are those of /v1: begun, stepped, repeated and ended through either door."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.api.clients import BIDIR, LSTM, SUM, open_client
from tests.service.api.oip.calls import error_of, outputs_of, parameters_of, post, post_binary, tensor

pytestmark = pytest.mark.anyio
ALL = f"/v1/models/{SUM}/sequences"
START = {"sequence_start": True}
RNG = np.random.default_rng(0)


async def step(client: httpx.AsyncClient, sequence_id: Any, values: Any, **parameters: Any) -> httpx.Response:
    return await post(client, SUM, tensor("x", [values]), parameters={"sequence_id": sequence_id, **parameters})


async def sums(client: httpx.AsyncClient, sequence_id: Any, values: Any, **parameters: Any) -> Any:
    answer = await step(client, sequence_id, values, **parameters)
    assert answer.status_code == 200, answer.text
    return outputs_of(answer)["y"][0].tolist()


@pytest.mark.parametrize("sequence_id", [7, 2**64 - 1, "pump-7"])
async def test_a_sequence_keeps_its_state_between_requests(client: httpx.AsyncClient, sequence_id: Any) -> None:
    assert await sums(client, sequence_id, [[1, 2]], **START) == [[1, 2]]
    answer = await step(client, sequence_id, [[3, 4], [5, 6]])
    assert outputs_of(answer)["y"].tolist() == [[[4, 6], [9, 12]]]
    told = parameters_of(answer)
    assert told.pop("sequence_expires_at").endswith("Z")
    assert told == {"sequence_id": sequence_id, "sequence_step": 3, "sequence_replayed": False}
    assert (await client.get(f"{ALL}/{sequence_id}")).json()["step"] == 3
    assert await sums(client, sequence_id, [[1, 1]], sequence_end=True) == [[10, 13]]
    assert (await client.get(f"{ALL}/{sequence_id}")).status_code == 410


async def test_outputs_alone_come_back_and_states_on_request(client: httpx.AsyncClient) -> None:
    assert list(outputs_of(await step(client, "states", [[1, 2]], **START))) == ["y"]
    asked = {"parameters": {"sequence_id": "states"}, "outputs": [{"name": "h_next"}]}
    outputs = outputs_of(await post(client, SUM, tensor("x", [[[3, 4]]]), **asked))
    assert {name: values.tolist() for name, values in outputs.items()} == {"h_next": [[[4, 6]]]}


async def test_a_sequence_begins_from_the_states_that_are_given(client: httpx.AsyncClient) -> None:
    inputs = tensor("x", [[[1, 2]]]), tensor("h", [[[10, 20]]])
    given = await post(client, SUM, *inputs, parameters={"sequence_id": "given", **START})
    assert outputs_of(given)["y"].tolist() == [[[11, 22]]]
    later = await post(client, SUM, *inputs, parameters={"sequence_id": "given"})
    error_of(later, 400, "sequence_start only")
    assert await sums(client, "given", [[0, 0]]) == [[11, 22]], "nothing was run"


@pytest.mark.parametrize("sequence_id", [0, ""])
async def test_no_id_is_no_sequence(client: httpx.AsyncClient, sequence_id: Any) -> None:
    assert list(outputs_of(await step(client, sequence_id, [[1, 2]]))) == ["y", "h_next"]
    for parameters in ({"sequence_start": True}, {"sequence_end": True}, {"sequence_step": 0}):
        error_of(await step(client, sequence_id, [[1, 2]], **parameters), 400, "need a sequence_id")


async def test_a_start_in_the_way_of_a_live_sequence_is_a_409(client: httpx.AsyncClient) -> None:
    await sums(client, "taken", [[1, 2]], **START)
    error_of(await step(client, "taken", [[5, 5]], **START), 409, "sequence_takeover")
    assert await sums(client, "taken", [[1, 1]]) == [[2, 3]], "the live one goes on"
    assert await sums(client, "taken", [[5, 5], [1, 1]], **START, sequence_takeover=True) == [[5, 5], [6, 6]]
    for _ in range(2):
        again = {**START, "sequence_takeover": True, "sequence_step": 0}
        assert await sums(client, "taken", [[5, 5], [1, 1]], **again) == [[5, 5], [6, 6]]
    error_of(await step(client, "taken", [[9, 9]], **{**again, "sequence_step": 2}), 409, "begins at step 0")
    answer = await step(client, "taken", [[1, 1]], sequence_step=2)
    assert outputs_of(answer)["y"].tolist() == [[[7, 7]]]


async def test_a_takeover_that_fails_leaves_the_live_sequence(client: httpx.AsyncClient) -> None:
    await sums(client, "kept", [[1, 2]], **START)
    too_large = [[3e38, 0], [3e38, 0]]
    error_of(await step(client, "kept", too_large, **START, sequence_takeover=True), 422)
    assert await sums(client, "kept", [[1, 1]], sequence_step=1) == [[2, 3]]


async def test_without_a_start_there_must_be_a_sequence(client: httpx.AsyncClient) -> None:
    error = error_of(await step(client, "unheard-of", [[1, 2]]), 404, "must set sequence_start")
    assert error["code"] == "sequence_not_found"
    await sums(client, "ended", [[1, 2]], **START, sequence_end=True)
    error = error_of(await step(client, "ended", [[1, 2]]), 410, "must set sequence_start")
    assert (error["code"], error["reason"]) == ("sequence_gone", "deleted")


async def test_start_and_end_together_are_a_sequence_of_one_request(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        answer = await step(client, 5, [[1, 2]], **START, sequence_end=True)
        assert outputs_of(answer)["y"].tolist() == [[[1, 2]]]
        assert parameters_of(answer) == {"sequence_id": 5, "sequence_step": 1, "sequence_replayed": False}


async def test_a_start_that_fails_leaves_nothing_behind(client: httpx.AsyncClient) -> None:
    error_of(await step(client, "stillborn", [[3e38, 0], [3e38, 0]], **START), 422)
    error_of(await step(client, "stillborn", [[1, 2]]), 404)
    assert error_of(await step(client, "stillborn", [[1, 2]], **START, sequence_step=3), 409)["expected_step"] == 0


@pytest.mark.parametrize("first", [{"sequence_start": True}, {}])
async def test_a_repeated_request_gets_its_answer_again_and_moves_nothing(
    client: httpx.AsyncClient, first: dict[str, Any]
) -> None:
    name = f"repeated-{bool(first)}"
    if not first:
        await client.post(ALL, json={"sequence_id": name})
    for replayed in (False, True, True):
        answer = await step(client, name, [[1, 2]], sequence_step=0, **first)
        assert outputs_of(answer)["y"].tolist() == [[[1, 2]]]
        assert parameters_of(answer)["sequence_replayed"] is replayed
    assert error_of(await step(client, name, [[9, 9]], sequence_step=0), 409)["expected_step"] == 1
    assert await sums(client, name, [[1, 1]], sequence_step=1) == [[2, 3]]


async def test_a_repeated_start_is_no_start_of_another_sequence(client: httpx.AsyncClient) -> None:
    """The id was taken by somebody else, or by other steps: neither is run again."""
    await client.post(ALL, json={"sequence_id": "native"})
    error_of(await step(client, "native", [[1, 2]], sequence_step=0, **START), 409, "already")
    await sums(client, "native", [[1, 2]])
    error_of(await step(client, "native", [[7, 7]], sequence_step=0, **START), 409, "already")
    assert (await client.get(f"{ALL}/native")).json()["step"] == 1


async def test_what_was_answered_through_one_door_is_repeated_through_the_other(client: httpx.AsyncClient) -> None:
    body = {"inputs": [[1, 2], [3, 4]], "step": 0, "start": True}
    native = (await client.post(f"{ALL}/both/steps", json=body)).json()
    answer = await step(client, "both", [[1, 2], [3, 4]], sequence_step=0)
    assert outputs_of(answer)["y"][0].tolist() == native["outputs"]
    assert parameters_of(answer)["sequence_replayed"] is True
    asked = {"parameters": {"sequence_id": "both", "sequence_step": 0}, "outputs": [{"name": "h_next"}]}
    other = await post(client, SUM, tensor("x", [[[1, 2], [3, 4]]]), **asked)
    assert error_of(other, 409, "other outputs")["expected_step"] == 2


async def test_one_sequence_through_both_doors_in_turn_is_the_whole_run_bit_for_bit(client: httpx.AsyncClient) -> None:
    x = RNG.normal(size=(1, 24, 3)).astype(np.float32)
    whole = outputs_of(await post_binary(client, LSTM, x))
    got, at = [], 0
    for turn, steps in enumerate([1, 2, 3, 1, 5, 4, 8]):
        piece = x[:, at : at + steps]
        if turn % 2:
            body = {"inputs": piece[0].tolist(), "step": at}
            answer = await client.post(f"/v1/models/{LSTM}/sequences/42/steps", json=body)
            got.append(np.array(answer.json()["outputs"], np.float32))
        else:
            answer = await post_binary(client, LSTM, piece, sequence_id=42, sequence_step=at, sequence_start=turn == 0)
            got.append(outputs_of(answer)["y"][0])
        assert answer.status_code == 200, answer.text
        at += steps
    assert np.concatenate(got).tobytes() == whole["y"].tobytes()
    state = (await client.get(f"/v1/models/{LSTM}/sequences/42/state")).json()["state"]
    for name in "hc":
        assert np.array(state[name], np.float32).tobytes() == whole[f"{name}_next"][0].tobytes()


async def test_concurrent_repeats_of_a_start_move_it_once(client: httpx.AsyncClient) -> None:
    calls = [step(client, "hasty", [[1, 2]], sequence_step=0, **START) for _ in range(8)]
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    assert sum(not parameters_of(answer)["sequence_replayed"] for answer in answers) == 1
    assert (await client.get(f"{ALL}/hasty")).json()["step"] == 1


async def test_repeats_are_known_after_a_restart(repository: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'state.db'}"
    async with open_client(repository, state_store=store) as client:
        calls = [step(client, "kept", [[1, 2]], sequence_step=0, **START) for _ in range(8)]
        answers = await asyncio.gather(*calls)
        assert [answer.status_code for answer in answers] == [200] * 8
        assert sum(not parameters_of(answer)["sequence_replayed"] for answer in answers) == 1
        await sums(client, "kept", [[1, 1]], sequence_step=1)
    async with open_client(repository, state_store=store) as client:
        again = await step(client, "kept", [[1, 2]], sequence_step=0, **START)
        assert outputs_of(again)["y"].tolist() == [[[1, 2]]]
        assert parameters_of(again)["sequence_replayed"] is True
        assert await sums(client, "kept", [[1, 1]], sequence_step=2, sequence_end=True) == [[3, 4]]
        error_of(await step(client, "kept", [[1, 1]]), 410)


# -- a sequence for each row -----------------------------------------------------------------------------------------


async def rows(client: httpx.AsyncClient, values: Any, **parameters: Any) -> httpx.Response:
    return await post(client, SUM, tensor("x", values), parameters=parameters)


async def test_rows_may_each_have_a_sequence(client: httpx.AsyncClient) -> None:
    ids = [101, "row-b", 103]
    first = await rows(client, [[[1, 0]], [[2, 0]], [[3, 0]]], sequence_ids=ids, **START)
    assert outputs_of(first)["y"].tolist() == [[[1, 0]], [[2, 0]], [[3, 0]]]
    second = await rows(client, [[[1, 1]], [[1, 1]]], sequence_ids=[103, 101], sequence_steps=[1, 1], sequence_end=True)
    assert outputs_of(second)["y"].tolist() == [[[4, 1]], [[2, 1]]]
    assert parameters_of(second) == {
        "sequence_ids": [103, 101],
        "sequence_steps": [2, 2],
        "sequence_replayed": False,
    }
    assert (await client.get(f"{ALL}/101")).status_code == 410
    assert (await client.get(f"{ALL}/row-b")).json()["step"] == 1


async def test_a_failed_row_is_named_and_the_call_can_be_repeated(client: httpx.AsyncClient) -> None:
    ids = ["one", "two"]
    await rows(client, [[[1, 0]], [[2, 0]]], sequence_ids=ids, **START)
    await sums(client, "two", [[1, 1]])
    values = [[[1, 1]], [[5, 5]]]
    error = error_of(await rows(client, values, sequence_ids=ids, sequence_steps=[1, 1]), 409, "Row 1: ")
    assert (error["index"], error["expected_step"]) == (1, 2)
    again = await rows(client, values, sequence_ids=ids, sequence_steps=[1, 2])
    assert outputs_of(again)["y"].tolist() == [[[2, 1]], [[8, 6]]]
    assert parameters_of(again)["sequence_steps"] == [2, 3]


@pytest.mark.parametrize(
    ("batch", "parameters", "words"),
    [
        (2, {"sequence_id": 1}, "expected a batch of 1"),
        (1, {"sequence_ids": ["a", "b"]}, "expected a batch of 2"),
        (2, {"sequence_ids": ["a", "a"]}, "one row"),
        (2, {"sequence_ids": [1, "1"]}, "one row"),
        (2, {"sequence_ids": ["a", "b"], "sequence_id": "c"}, "one of them"),
        (2, {"sequence_ids": ["a", "b"], "sequence_step": 0}, "sequence_steps"),
        (2, {"sequence_ids": ["a", "b"], "sequence_steps": [0]}, "expected 2"),
        (1, {"sequence_id": "a b"}, "sequence_id"),
        (1, {"sequence_id": ".."}, "sequence_id"),
        (1, {"sequence_id": -1}, "sequence_id"),
        (1, {"sequence_id": 2**64}, "sequence_id"),
        (1, {"sequence_id": 10**40}, "sequence_id"),
        (1, {"sequence_id": True}, "sequence_id"),
        (1, {"sequence_ids": [0]}, "sequence_id"),
        (1, {"sequence_ids": []}, "sequence_ids"),
        (1, {"sequence_id": 1, "sequence_start": 1}, "sequence_start"),
        (1, {"sequence_id": 1, "sequence_step": -1}, "sequence_step"),
    ],
)
async def test_parameters_that_do_not_fit_are_refused(
    client: httpx.AsyncClient, batch: int, parameters: dict[str, Any], words: str
) -> None:
    error_of(await rows(client, [[[1, 2]]] * batch, **{**START, **parameters}), 400, words)


# -- limits and strangers --------------------------------------------------------------------------------------------


async def test_a_model_that_cannot_be_stepped_refuses_sequences(client: httpx.AsyncClient) -> None:
    answer = await post(client, BIDIR, tensor("x", np.zeros((1, 2, 3))), parameters={"sequence_id": 1, **START})
    error_of(answer, 400, "whole sequence")


async def test_no_room_is_a_503_with_retry_after(repository: Path) -> None:
    async with open_client(repository, max_sequences=1) as client:
        assert await sums(client, 1, [[1, 2]], **START) == [[1, 2]]
        answer = await step(client, 2, [[1, 2]], **START)
        error_of(answer, 503, "held already")
        assert answer.headers["retry-after"]


async def test_strict_clients_get_the_400_that_they_expect(repository: Path) -> None:
    async with open_client(repository, oip_strict=True) as client:
        assert error_of(await step(client, 1, [[1, 2]]), 400, "sequence_start")["code"] == "sequence_not_found"
        await sums(client, 1, [[1, 2]], **START, sequence_end=True)
        assert error_of(await step(client, 1, [[1, 2]]), 400, "sequence_start")["code"] == "sequence_gone"


async def test_another_tenants_sequence_is_one_that_never_was(repository: Path) -> None:
    alice, bob = {"x-api-key": "alices-key"}, {"x-api-key": "bobs-own-key"}
    async with open_client(repository, api_keys=("alice:alices-key", "bob:bobs-own-key")) as client:
        x = np.ones((1, 1, 2), np.float32)
        await post_binary(client, SUM, x, alice, sequence_id="mine", sequence_start=True)
        foreign = await post_binary(client, SUM, x, bob, sequence_id="mine")
        absent = await post_binary(client, SUM, x, bob, sequence_id="none")
        assert (foreign.status_code, foreign.content) == (404, absent.content)
        mine = await post_binary(client, SUM, x, alice, sequence_id="mine")
        assert outputs_of(mine)["y"].tolist() == [[[2, 2]]]


async def test_a_version_in_the_path_must_be_the_sequences_own(client: httpx.AsyncClient) -> None:
    url = f"{SUM}/versions/1"
    parameters = {"sequence_id": "versioned", **START}
    assert (await post(client, url, tensor("x", [[[1, 2]]]), parameters=parameters)).status_code == 200
    later = await post(client, f"{SUM}/versions/2", tensor("x", [[[1, 2]]]), parameters={"sequence_id": "versioned"})
    error_of(later, 404, "keeps version 1")
