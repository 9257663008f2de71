"""State tokens over HTTP: what a caller carries away goes on to the bit, and opens nothing that is not theirs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.service.api.clients import LSTM, SUM, open_client

pytestmark = pytest.mark.anyio

KEYS = {"token_keys": ("one key of sixteen or more",)}
STEPS = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]


async def predict(client: httpx.AsyncClient, model: str, inputs: Any, status: int = 200, **fields: Any) -> Any:
    headers = fields.pop("headers", None)
    body = {"sequences": [{"inputs": inputs, **fields}]}
    answer = await client.post(f"/v1/models/{model}/predict", json=body, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()["sequences"][0] if status == 200 else answer.json()


async def token_of(client: httpx.AsyncClient) -> str:
    token: str = (await predict(client, LSTM, STEPS[:1]))["state_token"]
    return token


async def test_a_token_goes_on_to_the_bit_here_and_at_a_replica(repository: Path):
    async with open_client(repository, **KEYS) as here, open_client(repository, **KEYS) as there:
        whole = await predict(here, LSTM, STEPS)
        first = await predict(here, LSTM, STEPS[:1])
        for client in (here, there):
            rest = await predict(client, LSTM, STEPS[1:], state_token=first["state_token"])
            assert first["outputs"] + rest["outputs"] == whole["outputs"]
            assert rest["final_state"] == whole["final_state"]


async def test_a_sequence_is_carried_over_with_its_step(client: httpx.AsyncClient):
    base = f"/v1/models/{SUM}/sequences"
    await client.post(f"{base}/token-carried/steps", json={"inputs": [[1, 2], [3, 4]], "start": True})
    token = (await client.get(f"{base}/token-carried/state")).json()["state_token"]
    begun = await client.post(base, json={"sequence_id": "token-moved", "state_token": token})
    assert (begun.status_code, begun.json()["step"]) == (201, 2)
    put = await client.put(f"{base}/token-put/state", json={"state_token": token})
    assert (put.status_code, put.json()["step"]) == (200, 2)
    for name in ("token-moved", "token-put"):
        answer = await client.post(f"{base}/{name}/steps", json={"inputs": [[10, 10]], "step": 2})
        assert answer.json()["outputs"] == [[14, 16]]


async def test_a_state_put_from_a_token_takes_the_step_that_is_named(client: httpx.AsyncClient):
    base = f"/v1/models/{SUM}/sequences"
    token = (await predict(client, SUM, [[1, 2], [3, 4]]))["state_token"]
    for body, step in ({"state_token": token}, 2), ({"state_token": token, "step": 40}, 40):
        put = await client.put(f"{base}/token-put-again/state", json=body)
        assert (put.status_code, put.json()["step"]) == (200, step)
        answer = await client.get(f"{base}/token-put-again/state")
        assert (answer.json()["state"], answer.json()["step"]) == ({"h": [[4, 6]]}, step)
    for body in {}, {"state": {"h": [[1, 1]]}}, {"step": 3}, {"state": None, "step": 3}:
        assert (await client.put(f"{base}/token-put-again/state", json=body)).status_code == 422, body
    both = {"state_token": token, "state": {"h": [[1, 1]]}, "step": 3}
    assert "both" in (await client.put(f"{base}/token-put-again/state", json=both)).json()["detail"]
    create = {"state_token": token, "initial_state": {"h": [[1, 1]]}}
    assert "both" in (await client.post(base, json=create)).json()["detail"]
    assert (await client.get(f"{base}/token-put-again/state")).json()["step"] == 40, "what is refused moves nothing"


async def test_tokens_count_the_steps_of_all_calls(client: httpx.AsyncClient):
    token = None
    for steps in (1, 2, 3):
        token = (await predict(client, SUM, [[1, 1]] * steps, state_token=token))["state_token"]
    begun = await client.post(f"/v1/models/{SUM}/sequences", json={"state_token": token})
    assert begun.json()["step"] == 6


async def test_messagepack_carries_tokens_as_well(client: httpx.AsyncClient):
    async def ask(**sequence: Any) -> Any:
        body = msgspec.msgpack.encode({"sequences": [{"inputs": [[1, 2]], **sequence}]})
        headers = {"content-type": "application/msgpack"}
        answer = await client.post(f"/v1/models/{SUM}/predict", content=body, headers=headers)
        return msgspec.msgpack.decode(answer.content) if answer.is_success else answer.json()

    token = (await ask())["sequences"][0]["state_token"]
    assert (await ask(state_token=token))["sequences"][0]["outputs"] == [[2, 4]]
    assert (await ask(state_token=token, initial_state=None))["sequences"][0]["outputs"] == [[2, 4]]
    assert (await ask(state_token=token + "="))["reason"] == "malformed"
    assert "both" in (await ask(state_token=token, initial_state={"h": [[0, 0]]}))["detail"]


async def test_a_bad_token_fails_the_call_with_its_place(client: httpx.AsyncClient):
    rows = [{"inputs": [[1, 2]]}, {"inputs": [[1, 2]], "state_token": "x"}]
    problem = (await client.post(f"/v1/models/{SUM}/predict", json={"sequences": rows})).json()
    assert (problem["code"], problem["index"], problem["reason"]) == ("invalid_state", 1, "malformed")


async def test_steps_answer_no_token(client: httpx.AsyncClient):
    body = {"inputs": [[1, 2]], "start": True, "return_state": True}
    answer = (await client.post(f"/v1/models/{SUM}/sequences/token-steps/steps", json=body)).json()
    assert "final_state" in answer
    assert "state_token" not in answer
    whole = await client.post(
        f"/v1/models/{SUM}/predict", json={"sequences": [{"inputs": [[1, 2]]}], "return_state": False}
    )
    assert whole.json()["sequences"] == [{"outputs": [[1, 2]], "steps": 1}]


async def test_keys_are_changed_without_losing_tokens(repository: Path):
    old, new = "the old key, long enough", "the new key, long enough"
    async with open_client(repository, token_keys=(old,)) as before:
        token = await token_of(before)
    async with open_client(repository, token_keys=(new, old)) as during:
        assert (await predict(during, LSTM, STEPS[:1], state_token=token))["steps"] == 1
        renewed = await token_of(during)
    async with open_client(repository, token_keys=(new,)) as after:
        assert (await predict(after, LSTM, STEPS[:1], state_token=renewed))["steps"] == 1
        assert (await predict(after, LSTM, STEPS[:1], 422, state_token=token))["reason"] == "unknown_key"


async def test_what_is_not_theirs_or_not_whole_is_refused_with_the_reason(client: httpx.AsyncClient):
    token = await token_of(client)
    other = "B" if token[40] != "B" else "C"
    reasons = {
        token[:40] + other + token[41:]: "tampered",
        token[:-8]: "tampered",
        "x": "malformed",
        "": "malformed",
        token + "=": "malformed",
    }
    for text, reason in reasons.items():
        problem = await predict(client, LSTM, STEPS, 422, state_token=text)
        assert (problem["reason"], problem["place"]) == (reason, "sequences[0].state_token")
    assert (await predict(client, SUM, [[1, 1]], 422, state_token=token))["reason"] == "foreign_model"
    zeros = {"h": [[0.0] * 8], "c": [[0.0] * 8]}
    assert "both" in (await predict(client, LSTM, STEPS, 422, state_token=token, initial_state=zeros))["detail"]
    every_byte = [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in range(len(token))]
    body = {"sequences": [{"inputs": STEPS[:1], "state_token": text} for text in every_byte[:8]]}
    assert (await client.post(f"/v1/models/{LSTM}/predict", json=body)).status_code == 422
    for text in every_byte[8:]:
        await predict(client, LSTM, STEPS[:1], 422, state_token=text)


async def test_a_token_belongs_to_its_tenant_and_to_its_time(repository: Path):
    class Clock:
        now = 1_000_000.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    keys = ("a:secret-of-a", "b:secret-of-b")
    async with open_client(repository, clock=clock, api_keys=keys, token_ttl_seconds=60, **KEYS) as client:
        mine, theirs = {"X-API-Key": "secret-of-a"}, {"X-API-Key": "secret-of-b"}
        token = (await predict(client, LSTM, STEPS[:1], headers=mine))["state_token"]
        foreign = await predict(client, LSTM, STEPS, 422, state_token=token, headers=theirs)
        assert foreign["reason"] == "foreign_tenant"
        clock.now += 61
        assert (await predict(client, LSTM, STEPS, 422, state_token=token, headers=mine))["reason"] == "expired"


async def test_a_key_is_made_and_kept_beside_the_store(repository: Path, tmp_path: Path):
    store = {"state_store": f"sqlite:///{tmp_path}/state.db"}
    async with open_client(repository, **store) as first:
        token = await token_of(first)
    assert os.stat(tmp_path / "token.key").st_mode & 0o077 == 0
    async with open_client(repository, **store) as second:
        assert (await predict(second, LSTM, STEPS[:1], state_token=token))["steps"] == 1
