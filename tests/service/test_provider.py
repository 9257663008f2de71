"""Each execution provider: the same code, the same answers. CUDA runs where onnxruntime's CUDA build finds a GPU."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest

from service.app import create_app
from service.engine.model_runner import ModelRunner
from service.settings import Settings
from tests.service import onnx_models

pytestmark = pytest.mark.anyio

NEEDS_CUDA = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs onnxruntime's CUDA build and a GPU: make install GPU=1",
)
PROVIDERS = [
    pytest.param("cpu", True, "CPUExecutionProvider", id="cpu"),
    pytest.param("cuda", True, "CUDAExecutionProvider", id="cuda", marks=NEEDS_CUDA),
    pytest.param("cuda", False, "CUDAExecutionProvider", id="cuda-states-on-the-host", marks=NEEDS_CUDA),
]


@pytest.mark.parametrize(("provider", "device_states", "name"), PROVIDERS)
async def test_the_card_names_the_provider_in_use_and_a_stream_equals_the_whole(
    tmp_path: Path, provider: str, device_states: bool, name: str
):
    onnx_models.lstm(tmp_path, features=3, hidden=32, outputs=2)
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    app = create_app(Settings(model_repository=tmp_path, provider=provider, device_states=device_states))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://carousel") as client,
    ):
        card = (await client.get("/v1/models/lstm")).json()
        assert card["provider"] == name
        whole = await client.post("/v1/models/lstm/predict", json={"sequences": [{"inputs": x.tolist()}]})
        steps = [
            await client.post(
                "/v1/models/lstm/sequences/s/steps", json={"inputs": x[at : at + 7].tolist(), "start": True}
            )
            for at in range(0, 40, 7)
        ]
    streamed = np.concatenate([answer.json()["outputs"] for answer in steps])
    np.testing.assert_allclose(streamed, whole.json()["sequences"][0]["outputs"], rtol=0 if provider == "cpu" else 1e-5)


@NEEDS_CUDA
def test_cuda_agrees_with_the_cpu(tmp_path: Path):
    path = onnx_models.lstm(tmp_path, hidden=64, layers=2)
    x = np.random.default_rng(0).normal(size=(5, 50, 3)).astype(np.float32)
    states = [np.zeros((2, 5, 64), np.float32)] * 2
    cpu, cuda = (ModelRunner(path, provider=provider).run(x, states) for provider in ("cpu", "cuda"))
    np.testing.assert_allclose(cuda.outputs, cpu.outputs, atol=1e-4)
