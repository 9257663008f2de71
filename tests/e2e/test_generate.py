"""The models that ship with the project go on by themselves, through a real server."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.tasks import kjv, weather
from tests.service.api.processes import Served, serve

REPOSITORY = Path(__file__).parents[2] / "model_repository"
TEXT, FORECAST = "/v1/models/kjv/generate", "/v1/models/weather/generate"
EVENTS = {"Accept": "text/event-stream"}
LONG = {"inputs": "And", "steps": 99_000, "seed": 1}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(REPOSITORY) as served:
        yield served


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.address, timeout=60) as client:
        yield client


def left_calls(client: httpx.Client) -> int:
    """Rollouts whose callers left, as the server counts them."""
    label = f'route="{TEXT.replace("kjv", "{model}")}",status="499"'
    lines = [line for line in client.get("/metrics").text.splitlines() if "http_requests_total{" in line]
    return sum(int(float(line.split()[-1])) for line in lines if label in line)


def wait_until_left(client: httpx.Client, calls: int) -> None:
    while left_calls(client) < calls:
        pass
    queued = [line for line in client.get("/metrics").text.splitlines() if 'queued_requests{model="kjv"' in line]
    assert [float(line.split()[-1]) for line in queued] == [0]


def test_kjv_writes_words_of_its_book(client: httpx.Client) -> None:
    body = {"inputs": "And God said", "steps": 500, "temperature": 0.5, "seed": 1}
    text = client.post(TEXT, json=body).json()["text"]
    known = set("".join(kjv.chapters()).split())
    words = text.split()[1:-1]
    assert len(words) > 80
    assert sum(word in known for word in words) / len(words) > 0.95


@pytest.mark.anyio
async def test_a_text_is_the_same_alone_and_beside_fifty_others(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.address, timeout=60) as client:

        async def write(seed: int) -> dict[str, Any]:
            body = {"inputs": "In the beginning", "steps": 60, "seed": seed, "outputs": "all"}
            document: dict[str, Any] = (await client.post(TEXT, json=body)).json()
            del document["state_token"]  # it says when it expires
            return document

        alone = await write(7)
        beside = await asyncio.gather(*(write(seed) for seed in range(51)))
    assert beside[7] == alone
    assert len({document["text"] for document in beside}) == 51


def test_top_k_1_is_the_likeliest_character(client: httpx.Client) -> None:
    greedy, drawn = (
        client.post(TEXT, json={"inputs": "In the", "steps": 40, "outputs": "all", **choice}).json()
        for choice in ({"temperature": 0}, {"top_k": 1})
    )
    assert drawn["tokens"] == greedy["tokens"] == np.argmax(greedy["outputs"], axis=1).tolist()


def test_events_come_one_by_one_and_a_reader_who_leaves_ends_the_work(client: httpx.Client) -> None:
    before = left_calls(client)
    with client.stream("POST", TEXT, json=LONG, headers=EVENTS) as answer:
        lines = [line for line, _ in zip(answer.iter_lines(), range(30), strict=False)]
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [step["number"] for step in told] == list(range(1, 11))
    wait_until_left(client, before + 1)


def test_a_caller_who_leaves_without_having_seen_anything_ends_the_work_too(client: httpx.Client) -> None:
    before = left_calls(client)
    with pytest.raises(httpx.ReadTimeout):
        client.post(TEXT, json=LONG, timeout=0.2)
    wait_until_left(client, before + 1)


def test_curl_shows_characters_as_they_come(served: Served, client: httpx.Client) -> None:
    before = left_calls(client)
    command = ["curl", "-sN", "-H", "Accept: text/event-stream", "-H", "Content-Type: application/json"]
    command += ["-d", json.dumps(LONG), served.address + TEXT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        seen = [curl.stdout.readline() for _ in range(3)]
        assert curl.poll() is None, "the rest is still to come"
        curl.terminate()
    assert seen[0] == "event: step\n"
    assert json.loads(seen[1].removeprefix("data: "))["number"] == 1
    assert seen[2] == "\n"
    wait_until_left(client, before + 1)


def test_weather_forecasts_three_days_with_the_clock_going_on(client: httpx.Client) -> None:
    series = weather.split("test").inputs[0]
    made = client.post(FORECAST, json={"inputs": series[:200].tolist(), "steps": 72}).json()
    values = np.array(made["values"], np.float32)
    assert values.shape == (72, 10)
    np.testing.assert_allclose(values[:, 8:], series[200:272, 8:], atol=1e-5)
    assert np.array_equal(values[:, 1:8], np.repeat(series[199:200, 1:8], 72, axis=0))
    assert values[:24, 0].tolist() == np.array(made["outputs"][0], np.float32).tolist()
    assert 0 < np.abs(values[:, 0] - series[200:272, 0]).mean() < 15
    fed = [*series[:200].tolist(), *made["values"]]
    predicted = client.post("/v1/models/weather/predict", json={"sequences": [{"inputs": fed}]}).json()
    assert predicted["sequences"][0]["outputs"][199:271] == made["outputs"]
    assert predicted["sequences"][0]["final_state"] == made["final_state"]
