from __future__ import annotations

from pathlib import Path
from time import time
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.api.clients import BROKEN, LSTM, SUM, open_client
from tests.service.api.oip.calls import error_of, infer, post, post_binary, tensor
from tests.service.api.oip.schema import STATISTICS, check

pytestmark = pytest.mark.anyio
PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


async def statistics(client: httpx.AsyncClient, model: str = f"{SUM}/") -> dict[str, Any]:
    document = check(STATISTICS, (await client.get(f"/v2/models/{model}stats")).json())
    (only,) = document["model_stats"]
    assert isinstance(only, dict)
    return only


async def test_nothing_has_been_done_yet(repository: Path) -> None:
    async with open_client(repository) as client:
        found = await statistics(client)
    assert (found["name"], found["version"]) == (SUM, "1")
    assert (found["last_inference"], found["inference_count"], found["execution_count"]) == (0, 0, 0)
    assert all(part == {"count": 0, "ns": 0} for part in found["inference_stats"].values())
    assert found["batch_stats"] == []


async def test_rows_and_runs_are_counted_by_the_size_of_the_batch(repository: Path) -> None:
    async with open_client(repository) as client:
        for rows in (1, 1, 3):
            await infer(client, SUM, tensor("x", np.ones((rows, 1, 2))))
        body = {"sequences": [{"inputs": [[1, 2]]}]}
        await client.post(f"/v1/models/{SUM}/predict", json=body)
        found = await statistics(client)
    assert (found["inference_count"], found["execution_count"]) == (6, 4)
    assert time() - 60 < found["last_inference"] / 1000 <= time()
    batches = {batch["batch_size"]: batch for batch in found["batch_stats"]}
    assert {rows: batch["compute_infer"]["count"] for rows, batch in batches.items()} == {1: 3, 3: 1}
    parts = found["inference_stats"]
    assert parts["compute_infer"]["ns"] == pytest.approx(
        batches[1]["compute_infer"]["ns"] + 3 * batches[3]["compute_infer"]["ns"], abs=4
    ), "a run's time counts for each of its rows"
    assert {parts[name]["count"] for name in ("success", *PARTS)} == {6}
    assert parts["fail"]["count"] == 0
    for name in PARTS:
        assert 0 < parts[name]["ns"] < 5e9
    assert parts["success"]["ns"] > parts["compute_infer"]["ns"]


async def test_failures_are_counted_too(repository: Path) -> None:
    async with open_client(repository) as client:
        assert (await post(client, SUM, tensor("x", [[[3e38, 0], [3e38, 0]]]))).status_code == 422
        late = await post(client, SUM, tensor("x", np.zeros((1, 90_000, 2))), parameters={"timeout": 1})
        assert late.status_code == 504
        found = await statistics(client)
    assert found["inference_stats"]["fail"]["count"] == 2
    assert found["inference_stats"]["success"] == {"count": 0, "ns": 0}
    assert found["inference_count"] == 0


async def test_sequences_are_told_beside(repository: Path) -> None:
    async with open_client(repository) as client:
        x = np.ones((1, 1, 2), np.float32)
        await post_binary(client, SUM, x, sequence_id=1, sequence_start=True)
        await post_binary(client, SUM, x, sequence_id=2, sequence_start=True, sequence_end=True)
        found = await statistics(client)
    ended = {"deleted": 1, "expired": 0}
    told = found["sequence_stats"]
    assert (told["active"], told["created"], told["state_bytes"]) == (1, 2, 8)
    assert ended.items() <= told["ended"].items()


async def test_statistics_of_all_and_of_one_version(client: httpx.AsyncClient) -> None:
    document = check(STATISTICS, (await client.get("/v2/models/stats")).json())
    assert {SUM, LSTM} < {entry["name"] for entry in document["model_stats"]}
    assert (await statistics(client, f"{LSTM}/versions/1/"))["name"] == LSTM
    error_of(await client.get("/v2/models/nobody/stats"), 404)
    error_of(await client.get(f"/v2/models/{LSTM}/versions/9/stats"), 404)
    error_of(await client.get(f"/v2/models/{BROKEN}/stats"), 503)
