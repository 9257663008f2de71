from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from service.replay import Replays
from tests.service import onnx_models
from tests.service.api.clients import BIDIR, DOUBLING, LSTM, SUM, TOKENS, open_client, problem_of

pytestmark = pytest.mark.anyio
TEXT, FORECAST = f"/v1/models/{TOKENS}/generate", f"/v1/models/{SUM}/generate"
ALL = f"/v1/models/{TOKENS}/sequences"
EVENTS = {"Accept": "text/event-stream"}
LIKELIEST = {"temperature": 0, "seed": 1}


def read_events(text: str) -> list[tuple[str, Any]]:
    """(name, data) of each server-sent event."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block]
    assert all(len(lines) == 2 and lines[0].startswith("event: ") and lines[1].startswith("data: ") for lines in blocks)
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


async def begin(client: httpx.AsyncClient, text: list[int]) -> str:
    """The address of a sequence that stands after these tokens."""
    sequence_id = (await client.post(ALL)).json()["sequence_id"]
    answer = await client.post(f"{ALL}/{sequence_id}/steps", json={"inputs": text})
    assert answer.status_code == 200, answer.text
    return f"{ALL}/{sequence_id}"


async def stands_at(client: httpx.AsyncClient, one: str) -> tuple[int, list[float]]:
    state = (await client.get(f"{one}/state")).json()
    return state["step"], state["state"]["h"][0]


async def test_a_token_model_goes_on_with_its_likeliest_token(client: httpx.AsyncClient) -> None:
    answer = await client.post(TEXT, json={"inputs": "abb", "steps": 3, "outputs": "last", **LIKELIEST})
    told = answer.json()
    assert told.pop("state_token")
    assert told == {
        "model": TOKENS,
        "version": 1,
        "step": 6,
        "steps": 3,
        "tokens": [1, 1, 1],
        "text": "bbb",
        "finish_reason": "steps",
        "seed": 1,
        "outputs": [[1, 4, 0, 0, 0]],
        "final_state": {"h": [[1, 5, 0, 0, 0]]},
    }


async def test_text_and_its_tokens_are_the_same_inputs(client: httpx.AsyncClient) -> None:
    bodies = [{"inputs": inputs, "steps": 20, "seed": 9} for inputs in ("cab", [2, 0, 1])]
    first, second = [(await client.post(TEXT, json=body | {"return_state": False})).json() for body in bodies]
    assert first == second


async def test_the_final_state_has_seen_the_inputs_and_everything_generated(client: httpx.AsyncClient) -> None:
    made = (await client.post(TEXT, json={"inputs": "ab", "steps": 9, "seed": 4})).json()
    read = {"sequences": [{"inputs": [0, 1, *made["tokens"]]}]}
    whole = (await client.post(f"/v1/models/{TOKENS}/predict", json=read)).json()["sequences"][0]
    assert made["final_state"] == whole["final_state"]
    more = {"inputs": "e", "steps": 1, "initial_state": made["final_state"], "outputs": "all"}
    after = (await client.post(TEXT, json=more)).json()
    assert sum(after["outputs"][0]) == 2 + 9 + 1


async def test_a_token_goes_on_where_it_was_sealed(client: httpx.AsyncClient) -> None:
    read = {"sequences": [{"inputs": [0, 1]}], "outputs": "none"}
    token = (await client.post(f"/v1/models/{TOKENS}/predict", json=read)).json()["sequences"][0]["state_token"]
    whole = (await client.post(TEXT, json={"inputs": "abc", "steps": 4, **LIKELIEST})).json()
    body = {"inputs": "c", "state_token": token, **LIKELIEST}
    half = (await client.post(TEXT, json=body | {"steps": 4})).json()
    for name in ("step", "text", "final_state"):
        assert half[name] == whole[name]
    events = await client.post(TEXT, json=body | {"steps": 1}, headers=EVENTS)
    done = read_events(events.text)[-1][1]
    assert done["step"] == 4
    sequence = await client.post(ALL, json={"state_token": done["state_token"]})
    assert sequence.json()["step"] == 4, "what was generated becomes a sequence"


async def test_a_rollout_begins_at_a_state_or_at_a_token(client: httpx.AsyncClient) -> None:
    both = {"initial_state": {"h": [[0, 0, 0, 0, 0]]}, "state_token": "x"}
    for fields in (both, {"state_token": "x"}):
        answer = await client.post(TEXT, json={"inputs": "a", "steps": 1, **fields})
        assert problem_of(answer, 422, "invalid_state")["place"] == "state_token"


async def test_a_seed_that_the_server_chose_gives_the_same_text_again(client: httpx.AsyncClient) -> None:
    body = {"inputs": "abcde", "steps": 40, "return_state": False}
    first, other = [(await client.post(TEXT, json=body)).json() for _ in range(2)]
    again = (await client.post(TEXT, json={**body, "seed": first["seed"]})).json()
    assert again == first
    assert other["text"] != first["text"]


@pytest.mark.parametrize(("stop", "text"), [("bb", "bb"), (["x", 1], "b"), ([], "bbbbb"), (["c"], "bbbbb")])
async def test_a_text_ends_with_its_stop(client: httpx.AsyncClient, stop: Any, text: str) -> None:
    made = (await client.post(TEXT, json={"inputs": "bb", "steps": 5, "stop": stop, **LIKELIEST})).json()
    assert (made["text"], made["steps"], made["step"]) == (text, len(text), 2 + len(text))
    assert made["finish_reason"] == ("stop" if len(text) < 5 else "steps")
    assert made["final_state"] == {"h": [[0, 2 + len(text), 0, 0, 0]]}


async def test_a_forecaster_feeds_its_output_back(client: httpx.AsyncClient) -> None:
    made = (await client.post(FORECAST, json={"inputs": [[1, 5], [2, 6]], "steps": 3})).json()
    assert made["values"] == [[3, 6], [6, 6], [12, 6]]
    assert made["outputs"] == [[3, 11], [6, 17], [12, 23]]
    assert made["final_state"] == {"h": [[24, 29]]}
    assert "text" not in made
    known = {"inputs": [[1, 5]], "steps": 2, "future_inputs": {"1": [7, 8]}, "outputs": "none"}
    assert (await client.post(FORECAST, json=known)).json()["values"] == [[1, 7], [2, 8]]


async def test_messagepack_is_answered_in_messagepack(client: httpx.AsyncClient) -> None:
    body = msgspec.msgpack.encode({"inputs": "abb", "steps": 2, **LIKELIEST})
    answer = await client.post(TEXT, content=body, headers={"content-type": "application/msgpack"})
    made = msgspec.msgpack.decode(answer.content)
    assert (made["text"], made["tokens"], made["final_state"]) == ("bb", [1, 1], {"h": [[1, 4, 0, 0, 0]]})


async def test_events_tell_each_step_and_at_the_end_the_state(client: httpx.AsyncClient) -> None:
    body = {"inputs": "abb", "steps": 2, "outputs": "all", **LIKELIEST}
    answer = await client.post(TEXT, json=body, headers=EVENTS)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    whole = (await client.post(TEXT, json=body)).json()
    del whole["tokens"], whole["outputs"], whole["state_token"]
    events = read_events(answer.text)
    assert events[-1][1].pop("state_token"), "it holds the moment at which it ends, and so is another each time"
    assert events == [
        ("step", {"step": 4, "number": 1, "token": 1, "text": "b", "output": [1, 2, 0, 0, 0]}),
        ("step", {"step": 5, "number": 2, "token": 1, "text": "b", "output": [1, 3, 0, 0, 0]}),
        ("done", whole),
    ]
    forecast = await client.post(FORECAST, json={"inputs": [[1, 5]], "steps": 1}, headers=EVENTS)
    assert read_events(forecast.text)[0] == ("step", {"step": 2, "number": 1, "value": [1, 5], "output": [1, 5]})


async def test_an_error_in_the_middle_is_an_event_and_before_the_first_step_an_answer(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post(FORECAST, json={"inputs": [[1e37, 0]], "steps": 50}, headers=EVENTS)
    *steps, (name, problem) = read_events(answer.text)
    assert len(steps) >= 4
    assert {name for name, _ in steps} == {"step"}
    assert (name, problem["code"], problem["status"], problem["instance"]) == (
        "error",
        "non_finite_result",
        422,
        FORECAST,
    )
    at_once = await client.post(FORECAST, json={"inputs": [[3e38, 0], [3e38, 0]], "steps": 5}, headers=EVENTS)
    problem_of(at_once, 422, "non_finite_result")
    page = (await client.get("/metrics")).text
    counted = [line for line in page.splitlines() if 'errors_total{code="non_finite_result"}' in line]
    assert float(counted[0].split()[1]) >= 2


@pytest.mark.parametrize("headers", [{}, EVENTS])
@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (TEXT, {"inputs": "abz", "steps": 1}, 422, "invalid_input"),
        (TEXT, {"inputs": "", "steps": 1}, 422, "invalid_input"),
        (TEXT, {"inputs": [], "steps": 1}, 422, "invalid_input"),
        (TEXT, {"inputs": [7], "steps": 1}, 422, "invalid_input"),
        (TEXT, {"inputs": "a", "steps": 0}, 422, "invalid_input"),
        (TEXT, {"inputs": "a"}, 422, "invalid_input"),
        (TEXT, {"inputs": "a", "steps": 1, "temperature": -1}, 422, "invalid_input"),
        (TEXT, {"inputs": "a", "steps": 1, "top_k": 0}, 422, "invalid_input"),
        (TEXT, {"inputs": "a", "steps": 1, "stop": [""]}, 422, "invalid_input"),
        (TEXT, {"inputs": "a", "steps": 1, "stop": [0, 1000]}, 422, "invalid_input"),
        (TEXT, {"inputs": "a", "steps": 1, "future_inputs": {"0": [1]}}, 422, "invalid_input"),
        (TEXT, {"inputs": "a", "steps": 1, "initial_state": {"h": 1}}, 422, "invalid_state"),
        (TEXT, {"inputs": "a", "steps": 1000}, 413, "too_large"),
        (TEXT, {"inputs": "a" * 600, "steps": 600}, 413, "too_large"),
        (TEXT, {"inputs": "z" * 1000, "steps": 1}, 413, "too_large"),  # too long to be looked up in the vocabulary
        (TEXT, {"inputs": "a", "steps": 1, "beams": 4}, 400, "malformed_request"),
        (FORECAST, {"inputs": "a", "steps": 1}, 422, "invalid_input"),
        (FORECAST, {"inputs": [[1, 2]], "steps": 1, "stop": "a"}, 422, "invalid_input"),
        (FORECAST, {"inputs": [[1, 2]], "steps": 2, "future_inputs": {"1": [1]}}, 422, "invalid_input"),
        (FORECAST, {"inputs": [[1, 2]], "steps": 1, "future_inputs": {"1": ["a"]}}, 422, "invalid_input"),
        (FORECAST, {"inputs": [[1, 2]], "steps": 1, "future_inputs": {"1": 1}}, 422, "invalid_input"),
        (FORECAST, {"inputs": [[1, 2]], "steps": 1, "future_inputs": []}, 422, "invalid_input"),
        (FORECAST, {"inputs": [[1, 2]], "steps": 1, "future_inputs": {"1": [1], "2": [1]}}, 422, "invalid_input"),
        (FORECAST, {"inputs": [[1, 2]], "steps": 10**9}, 413, "too_large"),
        (f"/v1/models/{LSTM}/generate", {"inputs": [[1, 2, 3]], "steps": 1}, 422, "not_generative"),
        (f"/v1/models/{BIDIR}/generate", {"inputs": [[1, 2, 3]], "steps": 1}, 422, "not_streamable"),
        ("/v1/models/none/generate", {"inputs": "a", "steps": 1}, 404, "model_not_found"),
        (f"{ALL}/none/generate", {"inputs": "a", "steps": 1}, 404, "sequence_not_found"),
    ],
)
async def test_what_does_not_fit_is_refused(
    client: httpx.AsyncClient, path: str, body: Any, status: int, code: str, headers: dict[str, str]
) -> None:
    problem_of(await client.post(path, json=body, headers=headers), status, code)


async def test_a_temperature_without_bounds_is_refused(client: httpx.AsyncClient) -> None:
    body = msgspec.msgpack.encode({"inputs": "a", "steps": 1, "temperature": float("inf")})
    answer = await client.post(TEXT, content=body, headers={"content-type": "application/msgpack"})
    problem_of(answer, 422, "invalid_input")


async def test_a_model_of_probabilities_draws_by_them(tmp_path: Path) -> None:
    onnx_models.token_counts(tmp_path, "odds", kind="probability")
    async with open_client(tmp_path) as client:
        made = (await client.post("/v1/models/odds/generate", json={"inputs": "bd", "steps": 200, "seed": 1})).json()
    assert set(made["text"]) == {"b", "d"}


# -- from where a sequence stands --------------------------------------------------------------------------------------


async def test_a_sequence_moves_at_the_end_as_if_all_steps_had_been_given(client: httpx.AsyncClient) -> None:
    one = await begin(client, [0, 1])
    made = (await client.post(f"{one}/generate", json={"inputs": "b", "steps": 4, "step": 2, **LIKELIEST})).json()
    assert (made["text"], made["step"], made["replayed"]) == ("bbbb", 7, False)
    assert made["final_state"] == {"h": [[1, 6, 0, 0, 0]]}
    assert made["sequence_id"] == one.rsplit("/", 1)[1]
    assert await stands_at(client, one) == (7, [1, 6, 0, 0, 0])


async def test_commit_false_leaves_the_sequence_where_it_is(client: httpx.AsyncClient) -> None:
    one = await begin(client, [0, 1])
    body = {"inputs": "b", "steps": 4, "commit": False, **LIKELIEST}
    made = (await client.post(f"{one}/generate", json=body)).json()
    assert (made["text"], made["step"]) == ("bbbb", 7)
    assert await stands_at(client, one) == (2, [1, 1, 0, 0, 0])


@pytest.mark.parametrize("headers", [{}, EVENTS])
@pytest.mark.parametrize("seed", [{}, {"seed": 5}])
async def test_a_repeated_call_gives_the_same_answer_and_moves_nothing(
    client: httpx.AsyncClient, headers: dict[str, str], seed: dict[str, int]
) -> None:
    one = await begin(client, [0, 1])
    body = {"inputs": "ce", "steps": 30, "step": 2, "outputs": "all", **seed}
    first, again = [(await client.post(f"{one}/generate", json=body, headers=headers)).text for _ in range(2)]
    assert '"replayed":false' in first
    told, repeated = first.replace('"replayed":false', '"replayed":true'), again
    assert _without_times(repeated) == _without_times(told)
    assert (await stands_at(client, one))[0] == 34
    for change in ({"steps": 29}, {"steps": 31}, {"inputs": "cd"}, {"inputs": "ce" * 20}, {"commit": False}):
        other = await client.post(f"{one}/generate", json={**body, **change}, headers=headers)
        assert problem_of(other, 409, "step_conflict")["expected_step"] == 34


SHORT_AND_LONG = pytest.mark.parametrize("steps", [3, 300])
"""Of short answers the outputs are kept, of long ones the state before them."""


@pytest.mark.parametrize("headers", [{}, EVENTS])
@SHORT_AND_LONG
async def test_a_repeat_after_a_restart_gives_the_same_answer_and_moves_nothing(
    repository: Path, tmp_path: Path, headers: dict[str, str], steps: int
) -> None:
    store = f"sqlite:///{tmp_path / 'state.db'}"
    body = {"inputs": "ce", "steps": steps, "step": 2, "seed": 5, "outputs": "all"}
    async with open_client(repository, state_store=store) as client:
        one = await begin(client, [0, 1])
        first = (await client.post(f"{one}/generate", json=body, headers=headers)).text
        assert (await client.post(f"{one}/steps", json={"inputs": [1]})).status_code == 200
        stood_at = await stands_at(client, one)
    async with open_client(repository, state_store=store) as client:
        again = (await client.post(f"{one}/generate", json=body, headers=headers)).text
        assert _without_times(again) == _without_times(first.replace('"replayed":false', '"replayed":true'))
        for change in ({"steps": steps + 1}, {"seed": 7}, {"seed": None}, {"inputs": "cd"}, {"commit": False}):
            other = await client.post(f"{one}/generate", json={**body, **change}, headers=headers)
            assert problem_of(other, 409, "step_conflict")["expected_step"] == stood_at[0]
        assert await stands_at(client, one) == stood_at


async def test_outputs_that_depend_on_what_runs_together_are_no_reason_to_refuse_a_repeat_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun_at(replays: Replays, *args: Any) -> Any:
        kept = find(replays, *args)
        assert kept is not None
        kept.outputs = kept.outputs + 1  # a model of 8 bits puts out other numbers for steps in a chunk
        return kept

    find = Replays.begun_at
    monkeypatch.setattr(Replays, "begun_at", begun_at)
    onnx_models.running_sum(tmp_path, SUM, features=2, feedback=DOUBLING, batch_invariant=False)
    one, body = f"/v1/models/{SUM}/sequences/forecast", {"inputs": [[1, 5]], "steps": 3, "step": 0}
    async with open_client(tmp_path) as client:
        await client.post(f"/v1/models/{SUM}/sequences", json={"sequence_id": "forecast"})
        made = [(await client.post(f"{one}/generate", json=body)).json() for _ in range(2)]
    assert [one["replayed"] for one in made] == [False, True]
    assert made[0]["values"] == made[1]["values"] == [[1, 5], [2, 5], [4, 5]]


@SHORT_AND_LONG
async def test_a_forecast_needs_no_seed_to_be_repeated_after_a_restart(
    repository: Path, tmp_path: Path, steps: int
) -> None:
    store = f"sqlite:///{tmp_path / 'state.db'}"
    one = f"/v1/models/{SUM}/sequences/forecast"
    body = {"inputs": [[0, 5]], "steps": steps, "step": 0, "future_inputs": {"1": [n % 3 for n in range(steps)]}}
    answers = []
    for begins in (True, False):
        async with open_client(repository, state_store=store) as client:
            if begins:
                await client.post(f"/v1/models/{SUM}/sequences", json={"sequence_id": "forecast"})
            answers.append((await client.post(f"{one}/generate", json=body)).json())
    first, again = answers
    assert (first.pop("replayed"), again.pop("replayed")) == (False, True)
    del first["expires_at"], again["expires_at"]
    assert again == first


def _without_times(text: str) -> str:
    head, _, rest = text.partition('"expires_at":"')
    return head + rest.partition('"')[2]


async def test_a_sequence_that_another_call_moved_meanwhile_stays_where_that_left_it(
    client: httpx.AsyncClient,
) -> None:
    one = await begin(client, [0])
    rollout, step = await asyncio.gather(
        client.post(f"{one}/generate", json={"inputs": "b", "steps": 500, **LIKELIEST}),
        client.post(f"{one}/steps", json={"inputs": [4]}),
    )
    assert step.json()["step"] == 2
    assert problem_of(rollout, 409, "step_conflict")["expected_step"] == 2
    assert await stands_at(client, one) == (2, [1, 0, 0, 0, 1])


async def test_a_rollout_that_fails_leaves_the_sequence_as_it_was(client: httpx.AsyncClient) -> None:
    sequence_id = (await client.post(f"/v1/models/{SUM}/sequences")).json()["sequence_id"]
    one = f"/v1/models/{SUM}/sequences/{sequence_id}"
    for headers in ({}, EVENTS):
        await client.post(f"{one}/generate", json={"inputs": [[1e37, 0]], "steps": 50}, headers=headers)
        assert await stands_at(client, one) == (0, [0, 0])


async def test_a_sequence_has_a_state_of_its_own(client: httpx.AsyncClient) -> None:
    one = await begin(client, [0])
    body = {"inputs": "b", "steps": 1, "initial_state": {"h": [[0, 0, 0, 0, 0]]}}
    problem_of(await client.post(f"{one}/generate", json=body), 400, "malformed_request")


async def test_a_deadline_that_passes_commits_nothing(client: httpx.AsyncClient) -> None:
    one = await begin(client, [0])
    body, timeout = {"inputs": "b", "steps": 900}, {"X-Request-Timeout-Ms": "1"}
    problem_of(await client.post(f"{one}/generate", json=body, headers=timeout), 504, "deadline_exceeded")
    assert (await stands_at(client, one))[0] == 1
