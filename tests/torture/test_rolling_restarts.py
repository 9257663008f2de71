"""One server after the other, on the same store, under load: no call fails, and no step is done twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.torture.caller import Caller
from tests.torture.client import DRAINING, REFUSED, Client, check_ends
from tests.torture.conftest import LSTM, SUM
from tests.torture.course import Offline
from tests.torture.replica import Replica

pytestmark = pytest.mark.anyio

CLIENTS = 16


async def test_no_call_fails_while_servers_come_and_go(
    durable: str, repository: Path, tmp_path: Path, full: bool, chance: random.Random, tally: Counter[str]
) -> None:
    """Of a file the successor waits until its predecessor lets go of it; on Redis both are there for a while."""
    num_calls, num_restarts = (10_000, 20) if full else (600, 2)
    overlaps, offline, may_happen = durable.startswith("redis"), Offline(repository, chance), {REFUSED, DRAINING}
    old, new = (Replica(repository, durable, tmp_path / f"log{n}") for n in range(2))
    async with old, new.is_stopped_at_the_end(), asyncio.TaskGroup() as group:
        ports = [old.port, new.port]
        clients = []
        for n in range(CLIENTS):
            callers, own = (Caller(ports), Caller(ports)), random.Random(chance.getrandbits(32))
            clients.append(Client(f"c{n}", callers, offline, (SUM, LSTM), own, tally, frozenset(may_happen)))

        def is_over() -> bool:
            return tally["restarts"] >= num_restarts and tally["calls"] >= num_calls

        running = [group.create_task(client.run(is_over)) for client in clients]
        while tally["restarts"] < num_restarts:
            until = tally["calls"] + chance.randint(1, num_calls // num_restarts)
            while tally["calls"] < until:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            starting = asyncio.create_task(new.start())
            if overlaps:
                await starting
            assert await old.stop() == 0
            await starting
            tally["restarts"] += 1
            old, new = new, old
        await asyncio.gather(*running)
        async with Caller([old.port]) as caller:
            await check_ends(caller, clients, tally)
    assert "Traceback" not in old.log + new.log
