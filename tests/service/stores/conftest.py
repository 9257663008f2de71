from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.stores.opening import open_store
from service.stores.store import Store

KINDS = ["memory", "sqlite"]


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, anyio_backend: str, tmp_path: Path) -> AsyncIterator[Store]:
    """Each kind of store in turn, empty and open."""
    setting = {"memory": "memory", "sqlite": f"sqlite:///{tmp_path / 'state.db'}"}[request.param]
    opened = open_store(setting)
    await opened.open()
    yield opened
    await opened.close()
