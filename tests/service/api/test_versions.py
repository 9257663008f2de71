"""Versions that come and go under load, seen through HTTP."""

from __future__ import annotations

import asyncio
import shutil
import weakref
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import pytest

from service.registry import Registry
from tests.service import onnx_models
from tests.service.api.clients import open_client, open_server, problem_of

pytestmark = pytest.mark.anyio

LSTM, SUM = "/v1/models/lstm", "/v1/models/running-sum"
X = np.random.default_rng(1).normal(0, 1, (3, 3)).astype(np.float32)


def publish(root: Path, version: int) -> list[list[float]]:
    """Rename a version of `lstm` with weights of its own into place; what it answers to X."""
    path = onnx_models.lstm(root / ".unfinished", "lstm", version, seed=version)
    session = ort.InferenceSession(path)
    state = np.zeros((1, 1, 8), np.float32)
    y = session.run(["y"], {"x": X[None], "h": state, "c": state})[0][0]
    (root / "lstm").mkdir(exist_ok=True)
    path.parent.rename(root / "lstm" / str(version))
    return y.tolist()  # type: ignore[no-any-return]


class Hammer:
    """Calls without a pause, each checked against what its version must answer."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.expected: dict[int, list[list[float]]] = {}
        self.answered: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.over = False

    async def predict(self) -> None:
        while not self.over:
            answer = await self.client.post(f"{LSTM}/predict", json={"sequences": [{"inputs": X.tolist()}]})
            if answer.status_code != 200:
                self.wrong.append(answer.text)
                continue
            document = answer.json()
            self._check(document["version"], document["sequences"][0]["outputs"])

    async def step(self) -> None:
        while not self.over:
            begun = await self.client.post(f"{LSTM}/sequences")
            if begun.status_code != 201:
                self.wrong.append(begun.text)
                continue
            address, outputs = f"{LSTM}/sequences/{begun.json()['sequence_id']}", []
            for t, x in enumerate(X.tolist()):
                answer = await self.client.post(f"{address}/steps", json={"inputs": [x], "step": t})
                if answer.status_code != 200:
                    self.wrong.append(answer.text)
                    break
                outputs += answer.json()["outputs"]
            self._check(begun.json()["version"], outputs)
            await self.client.delete(address)

    async def answers_of(self, version: int) -> None:
        while self.answered[version] < 20 and not self.wrong:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def _check(self, version: int, outputs: list[list[float]]) -> None:
        self.answered[version] += 1
        if np.float32(outputs).tolist() != self.expected[version]:
            self.wrong.append(f"version {version} answered {outputs}")


async def test_no_call_fails_while_versions_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.app.SWEEP_SECONDS", 0.05)
    monkeypatch.setattr("service.departures.QUIET_SECONDS", 0.1)
    first = publish(tmp_path, 1)
    async with (
        open_server(tmp_path, model_poll_seconds=0.05, max_rows=8, max_chunk=8) as running,
        httpx.AsyncClient(base_url=running.address) as client,
    ):
        hammer = Hammer(client)
        hammer.expected[1] = first
        work = [asyncio.create_task(run()) for run in [hammer.predict, hammer.step] * 4]
        await hammer.answers_of(1)
        registry, runners = running.service.registry, []
        for version in range(2, 7):
            hammer.expected[version] = publish(tmp_path, version)
            await hammer.answers_of(version)
            runners.append(weakref.ref(registry.get("lstm", version - 1).engine._runner))
            shutil.rmtree(tmp_path / "lstm" / str(version - 1))
            while len(registry.index()) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        hammer.over = True
        await asyncio.gather(*work)
    assert hammer.wrong == []
    assert [runner() for runner in runners] == [None] * 5, "the memory of those let go is free"


async def test_a_pinned_version_serves_until_it_is_removed(tmp_path: Path) -> None:
    for version in (1, 2):
        onnx_models.running_sum(tmp_path, version=version)
    async with open_client(tmp_path, model_poll_seconds=0.01) as client:
        body = {"sequences": [{"inputs": [[1]]}]}
        assert (await client.post(f"{SUM}/predict?version=1", json=body)).json()["version"] == 1
        begun = await client.post(f"{SUM}/sequences?version=1", json={"sequence_id": "old"})
        assert begun.json()["version"] == 1
        shutil.rmtree(tmp_path / "running-sum" / "1")
        while (answer := await client.post(f"{SUM}/predict?version=1", json=body)).status_code == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert problem_of(answer, 404, "version_not_found")["expected"] == [2]
        (line,) = (await client.get("/v1/models")).json()["models"]
        assert line["versions"] == [2]
        assert (await client.post(f"{SUM}/sequences/old/steps", json={"inputs": [[1]]})).status_code == 200


async def test_sequences_of_an_unloaded_model_are_gone_with_the_reason(tmp_path: Path) -> None:
    onnx_models.running_sum(tmp_path)
    async with open_client(tmp_path, model_control=True) as client:
        await client.post(f"{SUM}/sequences", json={"sequence_id": "s"})
        registry: Registry = client._transport.app.state.service.registry  # type: ignore[attr-defined]
        await registry.unload_model("running-sum")
        for path in ("s", "s/state"):
            gone = problem_of(await client.get(f"{SUM}/sequences/{path}"), 410, "sequence_gone")
            assert gone["reason"] == "version_unloaded"
        problem_of(await client.post(f"{SUM}/sequences"), 503, "model_not_ready")
        (line,) = (await client.get("/v1/models")).json()["models"]
        assert (line["ready"], line["versions"], line["reason"]) == (False, [], "It was unloaded.")
        await registry.load_model("running-sum")
        assert (await client.post(f"{SUM}/sequences", json={"sequence_id": "s"})).status_code == 201


async def test_a_server_that_starts_empty_takes_up_what_is_published(tmp_path: Path) -> None:
    async with open_client(tmp_path, model_poll_seconds=0.01) as client:
        assert (await client.get("/health/ready")).status_code == 503
        onnx_models.running_sum(tmp_path)
        while (await client.get("/health/ready")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
