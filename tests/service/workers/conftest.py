from __future__ import annotations

from pathlib import Path

import pytest

from tests.service import onnx_models
from tests.service.api.clients import SUM, write_repository


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The running sum alone: a server is up sooner."""
    root = tmp_path_factory.mktemp("sums")
    onnx_models.running_sum(root, SUM, features=2)
    return root
