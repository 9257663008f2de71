"""Which store a setting names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import time

from service.errors import SettingsInvalid
from service.stores.memory import MemoryStore
from service.stores.redis.redis_store import RedisStore
from service.stores.sqlite.file import Synchronous
from service.stores.sqlite.sqlite_store import SqliteStore
from service.stores.store import Store

_REDIS = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}


def open_store(
    setting: str,
    *,
    synchronous: Synchronous = "normal",
    patience_seconds: float = 0.0,
    clock: Callable[[], float] = time,
) -> Store:
    """The store that `CAROUSEL_STATE_STORE` names, not opened yet. Raises SettingsInvalid.

    Of a file: `synchronous` `full` survives power loss; `patience_seconds` is how long a process that has it open may
    take to leave. `clock` tells when damage was found, and nothing else.
    """
    kind, _, rest = setting.partition("://")
    if setting == "memory":
        return MemoryStore()
    if kind == "sqlite" and rest.strip("/"):
        # as SQLAlchemy has it: three slashes for a relative path, four for an absolute one; two are taken for three
        return SqliteStore(Path(rest.removeprefix("/")), synchronous, patience_seconds, clock)
    if kind in _REDIS and rest:
        return RedisStore(f"{_REDIS[kind]}://{rest}")
    raise SettingsInvalid(
        f"CAROUSEL_STATE_STORE: expected memory, sqlite:///path or redis://host:port/0, got {kind[:20]!r}."
    )
