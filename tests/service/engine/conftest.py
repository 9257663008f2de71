"""The models that tests of the engine share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service import onnx_models


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.running_sum(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.lstm(tmp_path_factory.mktemp("models"), hidden=20, layers=2)
