from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.twins import TWINS, client_of, entered
from tests.service.api.clients import write_repository
from tests.service.api.processes import Served, serve

KEY, OTHER_KEY = "key-of-the-client", "key-of-another"
LIMITS = {"CAROUSEL_MAX_STEPS": "100000", "CAROUSEL_MAX_BATCH": "8", "CAROUSEL_MAX_FRAME_BYTES": "400000"}


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def served(repository: Path) -> Iterator[Served]:
    """One server process, for the tests that do not care what others leave behind."""
    with serve(repository, CAROUSEL_API_KEYS=f"mine:{KEY},yours:{OTHER_KEY}", **LIMITS) as running:
        yield running


@pytest.fixture(params=list(TWINS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def client(served: Served, kind: str) -> AsyncIterator[Any]:
    async with entered(client_of(kind, served.address, api_key=KEY)) as opened:
        yield opened
