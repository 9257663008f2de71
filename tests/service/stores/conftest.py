from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.stores.opening import open_store
from service.stores.store import Store

KINDS = ["memory", "sqlite", "redis"]


@pytest.fixture(params=KINDS)
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of each kind of store in turn, empty."""
    if request.param == "redis":
        url: str = request.getfixturevalue("redis_url")
        return url
    return "memory" if request.param == "memory" else f"sqlite:///{tmp_path / 'state.db'}"


@pytest.fixture
async def store(setting: str, anyio_backend: str) -> AsyncIterator[Store]:
    """Each kind of store in turn, empty and open."""
    opened = open_store(setting)
    await opened.open()
    yield opened
    await opened.close()
