from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.api.clients import BIDIR, LSTM, SUM, TOKENS, open_client, problem_of

pytestmark = pytest.mark.anyio
ALL = f"/v1/models/{SUM}/sequences"


async def begin(client: httpx.AsyncClient, **body: Any) -> str:
    answer = await client.post(ALL, json=body)
    assert answer.status_code == 201, answer.text
    sequence_id: str = answer.json()["sequence_id"]
    return f"{ALL}/{sequence_id}"


async def test_a_sequence_keeps_its_state_between_calls(client: httpx.AsyncClient) -> None:
    one = await begin(client)
    first = await client.post(f"{one}/steps", json={"inputs": [[1, 2], [3, 4]], "step": 0})
    assert first.json()["outputs"] == [[1, 2], [4, 6]]
    second = (await client.post(f"{one}/steps", json={"inputs": [[5, 6]], "step": 2, "return_state": True})).json()
    assert second.pop("expires_at").endswith("Z")
    sequence_id = one.rsplit("/", 1)[1]
    expected = {"step": 3, "outputs": [[9, 12]], "replayed": False, "final_state": {"h": [[9, 12]]}}
    assert second == {"sequence_id": sequence_id, **expected}
    assert (await client.get(one)).json()["step"] == 3
    state = (await client.get(f"{one}/state")).json()
    assert state.pop("state_token")
    assert state.pop("expires_at").endswith("Z")
    assert state == {
        "sequence_id": sequence_id,
        "step": 3,
        "state": {"h": [[9, 12]]},
    }


async def test_create_without_a_body_and_with_everything(client: httpx.AsyncClient) -> None:
    assert (await client.post(ALL)).status_code == 201
    body = {"sequence_id": "Pump_7.~-", "initial_state": {"h": [[5, 6]]}, "ttl_seconds": 60, "version": 1}
    answer = await client.post(ALL, json=body)
    assert {**answer.json(), "expires_at": None} == {
        "sequence_id": "Pump_7.~-",
        "model": SUM,
        "version": 1,
        "step": 0,
        "expires_at": None,
    }
    problem_of(await client.post(ALL, json={"sequence_id": "Pump_7.~-"}), 409, "sequence_exists")


async def test_a_step_that_the_caller_miscounts_is_a_conflict(client: httpx.AsyncClient) -> None:
    one = await begin(client)
    answer = await client.post(f"{one}/steps", json={"inputs": [[1, 2]], "step": 4})
    assert problem_of(answer, 409, "step_conflict")["expected_step"] == 0
    assert (await client.get(one)).json()["step"] == 0


async def test_commit_false_scores_without_moving(client: httpx.AsyncClient) -> None:
    one = await begin(client)
    scored = (await client.post(f"{one}/steps", json={"inputs": [[1, 2]], "commit": False})).json()
    assert (scored["step"], scored["outputs"]) == (1, [[1, 2]])
    assert (await client.get(f"{one}/state")).json()["state"] == {"h": [[0, 0]]}
    assert (await client.get(one)).json()["step"] == 0


async def test_start_creates_what_is_not_there(client: httpx.AsyncClient) -> None:
    one = f"{ALL}/started"
    problem_of(await client.post(f"{one}/steps", json={"inputs": [[1, 2]]}), 404, "sequence_not_found")
    for expected in ([[1, 2]], [[2, 4]]):
        answer = await client.post(f"{one}/steps", json={"inputs": [[1, 2]], "start": True})
        assert answer.json()["outputs"] == expected


@pytest.mark.parametrize(
    ("body", "status"),
    [({"inputs": [[1]]}, 422), ({"inputs": [[1, 2]], "step": 3}, 409), ({"inputs": [[3e38, 0], [3e38, 0]]}, 422)],
)
async def test_a_start_that_fails_leaves_nothing_behind(
    client: httpx.AsyncClient, body: dict[str, Any], status: int
) -> None:
    one = f"{ALL}/never-{status}-{len(body['inputs'])}"
    assert (await client.post(f"{one}/steps", json={**body, "start": True})).status_code == status
    problem_of(await client.get(one), 404, "sequence_not_found")


async def test_a_failed_call_leaves_the_state_as_it_was(client: httpx.AsyncClient) -> None:
    one = await begin(client, initial_state={"h": [[1, 1]]})
    answer = await client.post(f"{one}/steps", json={"inputs": [[3e38, 0], [3e38, 0]]})
    problem_of(answer, 422, "non_finite_result")
    assert (await client.get(f"{one}/state")).json()["state"] == {"h": [[1, 1]]}


async def test_put_state_creates_overwrites_and_checks_if_match(client: httpx.AsyncClient) -> None:
    one = f"{ALL}/put"
    body = {"state": {"h": [[7, 8]]}, "step": 40}
    problem_of(await client.put(f"{one}/state", json=body, headers={"if-match": '"3"'}), 404, "sequence_not_found")
    created = await client.put(f"{one}/state", json=body)
    assert (created.status_code, created.json()["step"]) == (200, 40)
    assert (await client.post(f"{one}/steps", json={"inputs": [[1, 1]], "step": 40})).json()["outputs"] == [[8, 9]]
    late = await client.put(f"{one}/state", json=body, headers={"if-match": '"40"'})
    assert problem_of(late, 409, "state_moved")["expected"] == 41
    assert (await client.put(f"{one}/state", json=body, headers={"if-match": '"41"'})).json()["step"] == 40
    problem_of(await client.put(f"{one}/state", json={**body, "step": -1}), 422, "invalid_input")
    problem_of(await client.put(f"{one}/state", json={**body, "state": {"h": 1}}), 422, "invalid_state")
    problem_of(await client.put(f"{one}/state", json={**body, "state": None}), 422, "invalid_input")
    for tag in ("x", '"40', '40"', '""40""', '""', '"'):
        problem_of(await client.put(f"{one}/state", json=body, headers={"if-match": tag}), 422, "invalid_input")
    for tag in ("40", '"40"', "*"):
        assert (await client.put(f"{one}/state", json=body, headers={"if-match": tag})).status_code == 200
    far = await client.put(f"{one}/state", json={**body, "step": 2**52 + 1})
    assert str(2**52) in problem_of(far, 422, "invalid_input")["detail"]


async def test_a_state_is_put_after_the_end_that_came_before(client: httpx.AsyncClient) -> None:
    one = await begin(client)
    async with asyncio.TaskGroup() as group:
        group.create_task(client.post(f"{one}/steps", json={"inputs": [[1, 1]] * 1000}))
        deleted = group.create_task(client.delete(one))
        put = group.create_task(client.put(f"{one}/state", json={"state": {"h": [[7, 8]]}, "step": 40}))
    assert (deleted.result().status_code, put.result().status_code) == (204, 200), put.result().text
    assert (await client.get(f"{one}/state")).json()["state"] == {"h": [[7, 8]]}


async def test_steps_begin_a_sequence_after_the_end_that_came_before(client: httpx.AsyncClient) -> None:
    one = await begin(client)
    async with asyncio.TaskGroup() as group:
        group.create_task(client.post(f"{one}/steps", json={"inputs": [[1, 1]] * 1000}))
        group.create_task(client.delete(one))
        begun = group.create_task(client.post(f"{one}/steps", json={"inputs": [[7, 8]], "start": True}))
    assert begun.result().json()["outputs"] == [[7, 8]], begun.result().text


async def test_a_fork_goes_its_own_way(client: httpx.AsyncClient) -> None:
    one = await begin(client)
    await client.post(f"{one}/steps", json={"inputs": [[1, 2]]})
    forked = (await client.post(f"{one}/fork", json={"sequence_id": "forked"})).json()
    assert (forked["sequence_id"], forked["step"]) == ("forked", 1)
    await client.post(f"{ALL}/forked/steps", json={"inputs": [[1, 1]]})
    assert (await client.get(f"{one}/state")).json()["state"] == {"h": [[1, 2]]}
    assert (await client.get(f"{ALL}/forked/state")).json()["state"] == {"h": [[2, 3]]}
    problem_of(await client.post(f"{one}/fork", json={"sequence_id": "forked"}), 409, "sequence_exists")
    assert (await client.post(f"{one}/fork")).status_code == 201


async def test_delete_answers_204_then_410_with_the_reason(client: httpx.AsyncClient) -> None:
    one = await begin(client)
    deleted = await client.delete(one)
    assert (deleted.status_code, deleted.content) == (204, b"")
    for method, path in (("GET", one), ("GET", f"{one}/state"), ("DELETE", one), ("POST", f"{one}/fork")):
        assert problem_of(await client.request(method, path), 410, "sequence_gone")["reason"] == "deleted"
    again = await client.post(f"{one}/steps", json={"inputs": [[1, 2]], "start": True})
    assert again.json()["outputs"] == [[1, 2]]


async def test_the_list_is_paged(client: httpx.AsyncClient) -> None:
    path = f"/v1/models/{TOKENS}/sequences"
    ids = [f"page-{n}" for n in range(5)]
    for sequence_id in ids:
        await client.post(path, json={"sequence_id": sequence_id})
    found, cursor = [], ""
    while cursor is not None:
        page = (await client.get(path, params={"limit": 2, "cursor": cursor})).json()
        assert len(page["sequences"]) <= 2
        found += [s["sequence_id"] for s in page["sequences"] if s["sequence_id"].startswith("page-")]
        cursor = page["next_cursor"]
    assert found == ids
    problem_of(await client.get(path, params={"limit": 0}), 422, "invalid_input")


async def test_models_that_need_whole_sequences_cannot_be_stepped(client: httpx.AsyncClient) -> None:
    path = f"/v1/models/{BIDIR}/sequences"
    problem_of(await client.post(path), 422, "not_streamable")
    state = {"state": {"h": [[0] * 8] * 2, "c": [[0] * 8] * 2}, "step": 0}
    problem_of(await client.put(f"{path}/x/state", json=state), 422, "not_streamable")


@pytest.mark.parametrize("sequence_id", ["a%20b", "%C3%A9", "a" * 129, "a%0A", "%FF", "a+b"])
async def test_ids_outside_the_pattern_are_refused(client: httpx.AsyncClient, sequence_id: str) -> None:
    answer = await client.get(f"{ALL}/{sequence_id}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    for refused in ("a\n", ".", ".."):
        problem_of(await client.post(ALL, json={"sequence_id": refused}), 422, "invalid_input")


async def test_a_percent_encoded_id_is_the_same_id(client: httpx.AsyncClient) -> None:
    await client.post(ALL, json={"sequence_id": "per.cent"})
    assert (await client.get(f"{ALL}/per%2Ecent")).status_code == 200


async def test_a_sequence_keeps_its_version(client: httpx.AsyncClient) -> None:
    one = await begin(client)
    assert (await client.get(f"{one}?version=1")).status_code == 200
    problem_of(await client.get(f"{one}?version=2"), 404, "version_not_found")


async def test_chunks_equal_the_whole_bit_for_bit(client: httpx.AsyncClient) -> None:
    inputs = [[0.3 * t, 1.5, -0.1] for t in range(21)]
    whole = await client.post(f"/v1/models/{LSTM}/predict", json={"sequences": [{"inputs": inputs}]})
    outputs = []
    for first, last in ((0, 1), (1, 8), (8, 21)):
        body = {"inputs": inputs[first:last], "start": True, "step": first}
        answer = await client.post(f"/v1/models/{LSTM}/sequences/chunks/steps", json=body)
        outputs += answer.json()["outputs"]
    assert outputs == whole.json()["sequences"][0]["outputs"]


async def test_a_lease_ends_unless_it_is_renewed(repository: Path) -> None:
    now = 1_000_000.0
    async with open_client(repository, clock=lambda: now) as client:
        one = await begin(client, sequence_id="leased", ttl_seconds=10)
        assert (await client.get(one)).json()["expires_at"] == "1970-01-12T13:46:50.000Z"
        now += 9
        await client.post(f"{one}/steps", json={"inputs": [[1, 2]]})
        now += 9
        assert (await client.get(one)).json()["step"] == 1
        assert (await client.get(f"{one}/state")).json()["expires_at"] == "1970-01-12T13:47:08.000Z"
        now += 11
        assert problem_of(await client.get(one), 410, "sequence_gone")["reason"] == "expired"
        problem_of(await client.post(ALL, json={"ttl_seconds": 1e12}), 422, "invalid_input")


async def test_a_lost_reply_is_answered_again_and_the_stream_moves_once(client: httpx.AsyncClient) -> None:
    call = {"inputs": [[1, 2], [3, 4]], "step": 0, "start": True, "return_state": True}
    first = (await client.post(f"/v1/models/{SUM}/sequences/lost/steps", json=call)).json()
    again = (await client.post(f"/v1/models/{SUM}/sequences/lost/steps", json=call)).json()
    assert (first.pop("replayed"), again.pop("replayed")) == (False, True)
    first.pop("expires_at"), again.pop("expires_at")
    assert again == first
    other = await client.post(f"/v1/models/{SUM}/sequences/lost/steps", json={**call, "inputs": [[9, 9]]})
    assert problem_of(other, 409, "step_conflict")["expected_step"] == 2
