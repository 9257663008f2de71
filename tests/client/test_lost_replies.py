"""Replies are lost and servers end: no step is done twice, none is left out."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from carousel_client import Client, Retry
from tests.client.conftest import KEY
from tests.client.sockets import CuttingProxy, free_port, running
from tests.client.twins import client_of, entered, got
from tests.service.api.clients import SUM
from tests.service.api.processes import Served, serve

pytestmark = pytest.mark.anyio

QUICK = Retry(first_seconds=0.002, max_seconds=0.2)


def expected(steps: int) -> list[list[float]]:
    """Step n brings the number n + 1, so the sum tells which steps were run."""
    return [[steps * (steps + 1) / 2, steps]]


async def test_500_steps_over_connections_that_are_cut_at_random(served: Served, kind: str) -> None:
    proxy, replayed = CuttingProxy(int(served.address.rsplit(":", 1)[1]), 100, 4000), 0
    with running(proxy) as address:
        async with (
            entered(client_of(kind, address, api_key=KEY, retry=QUICK)) as client,
            entered(client.model(SUM).sequence()) as s,
        ):
            for step in range(500):
                stepped = await got(s.step([[step + 1, 1]]))
                assert (stepped.step, stepped.outputs.tolist()) == (step + 1, expected(step + 1))
                replayed += stepped.replayed
    assert proxy.cuts > 50
    assert replayed > 20, "no answer was lost, so nothing was shown"


async def test_a_stream_whose_connections_are_cut_at_random(served: Served, kind: str) -> None:
    proxy = CuttingProxy(int(served.address.rsplit(":", 1)[1]), 300, 6000)
    ids, replayed = [f"cut-{kind}-{n}" for n in range(10)], 0
    with running(proxy) as address:
        async with (
            entered(client_of(kind, address, api_key=KEY, retry=QUICK)) as client,
            entered(client.model(SUM).stream()) as stream,
        ):
            sent = [await got(stream.send(id, [[step + 1, 1]])) for step in range(100) for id in ids]
            for n, pending in enumerate(sent):
                stepped = await pending if kind == "async" else pending.result()
                step = n // len(ids) + 1
                assert (stepped.sequence_id, stepped.step) == (ids[n % len(ids)], step)
                assert stepped.outputs.tolist() == expected(step)
                replayed += stepped.replayed
            assert [stream.position(id) for id in ids] == [100] * len(ids)
    assert proxy.cuts > 5
    assert replayed > 5, "no answer was lost, so nothing was shown"


def stream_blocking(address: str, ids: list[str], steps: int, under_way: Event) -> list[list[Any]]:
    with Client(address, retry=QUICK) as client, client.model(SUM).stream() as stream:
        rounds = []
        for step in range(steps):
            pending = [stream.send(id, [[step + 1, 1]]) for id in ids]
            rounds.append([answer.result() for answer in pending])
            if step == steps // 4:
                under_way.set()
        return rounds


def stream_async(address: str, ids: list[str], steps: int, under_way: Event) -> list[list[Any]]:
    async def main() -> list[list[Any]]:
        async with (
            entered(client_of("async", address, retry=QUICK)) as client,
            client.model(SUM).stream() as stream,
        ):
            rounds = []
            for step in range(steps):
                rounds.append(await asyncio.gather(*(stream.step(id, [[step + 1, 1]]) for id in ids)))
                if step == steps // 4:
                    under_way.set()
            return rounds

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("stream", "how"), [(stream_blocking, signal.SIGKILL), (stream_async, signal.SIGTERM)], ids=["sync", "async"]
)
def test_streams_and_sequences_go_on_when_their_server_ends_and_another_takes_up_its_store(
    repository: Path, tmp_path: Path, stream: Callable[..., list[list[Any]]], how: signal.Signals
) -> None:
    settings = {"CAROUSEL_PORT": str(free_port()), "CAROUSEL_STATE_STORE": f"sqlite:///{tmp_path}/states.db"}
    ids, steps, under_way = [f"s{n}" for n in range(8)], 400, Event()
    with (
        ThreadPoolExecutor(1) as pool,
        serve(repository, **settings) as first,
        Client(first.address, retry=QUICK) as client,
    ):
        s = client.model(SUM).sequence("s")
        for step in range(20):
            s.step([[step + 1, 1]])
        streaming = pool.submit(stream, first.address, ids, steps, under_way)
        assert under_way.wait(60)
        first.process.send_signal(how)
        first.process.wait(60)
        assert not streaming.done()
        with serve(repository, **settings):
            rounds = streaming.result(120)
            found = [client.model(SUM).sequence(id).state["h"].tolist() for id in ids]
            assert s.step([[21, 1]]).outputs.tolist() == expected(21)
    for done, answers in enumerate(rounds, 1):
        assert [(answer.step, answer.outputs.tolist()) for answer in answers] == [(done, expected(done))] * len(ids)
    assert found == [expected(steps)] * len(ids)
