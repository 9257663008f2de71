"""Replies are cut and the server is killed under its callers: each step is done once, and none is left out."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.torture.caller import Caller
from tests.torture.client import LOST, Client, check_ends
from tests.torture.conftest import LSTM, SUM
from tests.torture.course import Offline
from tests.torture.proxy import open_proxy
from tests.torture.replica import Replica

pytestmark = pytest.mark.anyio

CLIENTS = 32
RESIDENT = "70"
"""Of some 128 sequences under way: they give up their rows and come back all the time."""
LATE_SECONDS = 0.01


async def test_no_step_is_done_twice_or_left_out(
    durable: str, repository: Path, tmp_path: Path, full: bool, chance: random.Random, tally: Counter[str]
) -> None:
    num_calls, num_kills = (20_000, 100) if full else (600, 2)
    offline = Offline(repository, chance)
    async with Replica(repository, durable, tmp_path / "log", CAROUSEL_MAX_RESIDENT_SEQUENCES=RESIDENT) as replica:
        async with open_proxy(replica.port, replica.is_up, chance, tally) as proxy, asyncio.TaskGroup() as group:
            clients = []
            for n in range(CLIENTS):
                callers = Caller([proxy.port]), Caller([proxy.port])
                own = random.Random(chance.getrandbits(32))
                clients.append(Client(f"c{n}", callers, offline, (SUM, LSTM), own, tally, frozenset([LOST])))
            running = [group.create_task(client.run(lambda: tally["calls"] >= num_calls)) for client in clients]
            while not all(task.done() for task in running):
                until = tally["calls"] + chance.randint(1, 3 * num_calls // (2 * num_kills))
                while tally["calls"] < until and not all(task.done() for task in running):  # noqa: ASYNC110
                    await asyncio.sleep(chance.random() * LATE_SECONDS)
                await kill(replica, tally)
        await kill(replica, tally)
        async with Caller([replica.port]) as caller:
            await check_ends(caller, clients, tally)
    assert "Traceback" not in replica.log, replica.log[-4000:]
    least = 0.1 if full else 0.05  # 12 in 100 are cut: of few replies by chance fewer than 10
    assert tally["replies cut"] >= least * tally["replies"]
    assert tally["calls"] >= num_calls
    assert tally["kills"] >= num_kills


async def kill(replica: Replica, tally: Counter[str]) -> None:
    await replica.kill()
    tally["kills"] += 1
    await replica.start()
