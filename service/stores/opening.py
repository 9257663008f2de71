"""Which store a setting names."""

from __future__ import annotations

from service.stores.memory import MemoryStore
from service.stores.store import Store


def open_store(setting: str) -> Store:
    """The store that `CAROUSEL_STATE_STORE` names, not opened yet."""
    return MemoryStore()
