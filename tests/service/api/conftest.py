from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.service.api.clients import open_client, write_repository


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One loop for all tests here: the app's engines belong to it."""
    return "asyncio"


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
async def client(anyio_backend: str, repository: Path) -> AsyncIterator[httpx.AsyncClient]:
    """One server for the tests that do not care what others leave behind."""
    async with open_client(repository, max_steps=1000, max_batch=8, max_body_bytes=100_000) as opened:
        yield opened
