"""Redis goes away under load, and comes back: callers are told to wait meanwhile, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.service.stores.redis_server import RedisServer
from tests.torture.caller import Caller
from tests.torture.client import AWAY, Client, check_ends
from tests.torture.conftest import LSTM, SUM
from tests.torture.course import Offline
from tests.torture.replica import Replica

pytestmark = pytest.mark.anyio

CLIENTS = 16


@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_callers_wait_and_go_on(
    how: str,
    redis: RedisServer,
    repository: Path,
    tmp_path: Path,
    full: bool,
    chance: random.Random,
    tally: Counter[str],
) -> None:
    seconds, calls = (10.0, 2000) if full else (0.5, 300)
    offline, is_over = Offline(repository, chance), asyncio.Event()
    async with Replica(repository, redis.url, tmp_path / "log") as replica, asyncio.TaskGroup() as group:
        clients = []
        for n in range(CLIENTS):
            callers, own = (Caller([replica.port]), Caller([replica.port])), random.Random(chance.getrandbits(32))
            clients.append(Client(f"c{n}", callers, offline, (SUM, LSTM), own, tally, frozenset([AWAY])))
        running = [group.create_task(client.run(is_over.is_set)) for client in clients]
        await more(calls, tally)
        await asyncio.to_thread(redis.stop if how == "stopped" else redis.freeze)
        while not tally[AWAY]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        answered = tally["calls"]
        async with Caller([replica.port]) as caller:
            assert (await caller.call("GET", "/health/live")).status == 200
        await asyncio.sleep(seconds)
        assert tally["calls"] == answered, "what cannot be kept is not answered"
        await asyncio.to_thread(redis.start if how == "stopped" else redis.thaw)
        await more(calls, tally)
        is_over.set()
        await asyncio.gather(*running)
        async with Caller([replica.port]) as caller:
            await check_ends(caller, clients, tally)
    assert "Traceback" not in replica.log, replica.log[-4000:]


async def more(calls: int, tally: Counter[str]) -> None:
    """Wait for more answers."""
    until = tally["calls"] + calls
    while tally["calls"] < until:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
