from __future__ import annotations

import tracemalloc

import pytest

from service.stores.memory import MemoryStore
from service.stores.store import Begin
from tests.service.stores.records import record

pytestmark = pytest.mark.anyio


async def test_an_idle_sequence_takes_little_more_than_its_state():
    state, count = bytes(512), 20_000
    store = MemoryStore()
    tracemalloc.start()
    try:
        for n in range(count):
            await store.commit(
                [Begin(record(("acme", "pump", f"seq-{n:024x}"), n, state=state, ttl_seconds=n / 10 + 1))]
            )
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert await store.count("pump") == count
    assert held / count < 900
