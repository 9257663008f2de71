"""Bad luck of a set kind and amount: little of it in every run, all of it with `--torture`.

CAROUSEL_TORTURE_SEED chooses another course of it. What was done is counted, and told at the end of the run.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.service import onnx_models
from tests.service.stores.redis_server import RedisServer

SEED = int(os.environ.get("CAROUSEL_TORTURE_SEED", "1"))
FULL_SECONDS = 3000
TOLD: list[str] = []

SUM, LSTM = "sum", "lstm"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--torture"):
        for item in items:
            item.add_marker(pytest.mark.timeout(FULL_SECONDS))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TOLD:
        terminalreporter.section(f"torture, seed {SEED}")
        for line in TOLD:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Is all of it asked for?"""
    return bool(pytestconfig.getoption("--torture"))


@pytest.fixture
def chance() -> random.Random:
    print(f"CAROUSEL_TORTURE_SEED={SEED}")
    return random.Random(SEED)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """What happened, and how often."""
    counts: Counter[str] = Counter()
    begin = monotonic()
    yield counts
    told = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    TOLD.append(f"{request.node.name}: {told}, in {monotonic() - begin:.1f} s")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A running sum, exact for integers, and an LSTM, compared to the last bit."""
    root = tmp_path_factory.mktemp("repository")
    onnx_models.running_sum(root, SUM)
    onnx_models.lstm(root, LSTM)
    return root


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The running sum alone, for servers that start anew all the time."""
    root = tmp_path_factory.mktemp("sums")
    onnx_models.running_sum(root, SUM)
    return root


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One that holds nothing, and is stopped by its test as it likes."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The setting of each store that outlives the server."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    url: str = request.getfixturevalue("redis").url
    return url
