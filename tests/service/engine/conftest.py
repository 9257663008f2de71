"""The models that tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.engine.device_runner import DeviceRunner
from service.engine.model_runner import ModelRunner
from tests.service import onnx_models
from tests.service.engine.engines import OPEN_RUNNER


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.running_sum(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.lstm(tmp_path_factory.mktemp("models"), hidden=20, layers=2)


@pytest.fixture(scope="module", params=[ModelRunner, DeviceRunner], ids=["host", "device"])
def either_arena(request: pytest.FixtureRequest) -> Iterator[None]:
    """States in arrays of the host, and as they are kept on a device."""
    OPEN_RUNNER.append(request.param)
    yield
    OPEN_RUNNER.pop()
