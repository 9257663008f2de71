"""What tests of the serving half may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.stores.redis_server import RedisServer


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Of a server that holds nothing."""
    redis_server.empty()
    return redis_server.url
