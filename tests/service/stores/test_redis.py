"""What the shared store promises besides: replicas, and a server that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import SettingsInvalid, StoreUnavailable
from service.stores.opening import open_store
from service.stores.redis.redis_store import RedisStore
from service.stores.store import Advance, Begin, Record, Store
from tests.service.stores.records import KEY, NOW, advance, advanced, record
from tests.service.stores.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def replicas(redis_url: str) -> AsyncIterator[tuple[Store, Store]]:
    stores = RedisStore(redis_url), RedisStore(redis_url)
    for store in stores:
        await store.open()
    yield stores
    for store in stores:
        await store.close()


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


async def come_back(store: Store) -> None:
    """Wait until the store answers again."""
    async with asyncio.timeout(20):
        while True:
            try:
                await store.count("pump")
                return
            except StoreUnavailable:
                await asyncio.sleep(0.01)


async def test_of_two_replicas_at_one_step_exactly_one_is_first(replicas: tuple[Store, Store]):
    one, other = replicas
    standing = {n: record(("acme", "pump", f"p-{n}"), n << 20) for n in range(50)}
    await one.commit([Begin(put) for put in standing.values()])
    for turn in range(20):
        # the very same step at both for even ones: one is first all the same
        steps = {n: advance(put) for n, put in standing.items()}
        others = {
            n: advance(put, state=b"another" if n % 2 else b"state at %d" % (turn + 1)) for n, put in standing.items()
        }
        won, also = await asyncio.gather(one.commit([*steps.values()]), other.commit([*others.values()]))
        assert [a + b for a, b in zip(won, also, strict=True)] == [1] * 50
        for n, is_mine in enumerate(won):
            standing[n] = advanced(standing[n], steps[n] if is_mine else others[n])
            assert await other.read(standing[n].key, NOW) == standing[n]


async def test_each_lease_ends_at_one_replica(replicas: tuple[Store, Store]):
    one, other = replicas
    await one.commit([Begin(record(("acme", "pump", f"{n}"), n, ttl_seconds=5.0)) for n in range(40)])
    ended = await asyncio.gather(*(store.expire(NOW + 6, 7) for _ in range(12) for store in (one, other)))
    assert sorted(key for keys in ended for key in keys) == sorted(("acme", "pump", f"{n}") for n in range(40))
    assert await one.count("pump") == 0


async def test_a_cancelled_call_leaves_its_reply_to_nobody(replicas: tuple[Store, Store]):
    store, _ = replicas
    puts = [record(("acme", "pump", f"{n}"), n, state=b"%d" % n * 50) for n in range(64)]
    await store.commit([Begin(put) for put in puts])

    async def read(put: Record, after: float | None) -> object:
        async with asyncio.timeout(after):
            return await store.read(put.key, NOW)

    for turn in range(100):
        calls = [read(put, 0.0002 * (n % 9) if (n + turn) % 3 else None) for n, put in enumerate(puts)]
        for n, answer in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
            assert isinstance(answer, TimeoutError) or answer == puts[n]


async def test_redis_stopped_and_started_again_loses_nothing(own_server: RedisServer):
    store = RedisStore(own_server.url)
    await store.open()
    standing = record()
    await store.commit([Begin(standing)])
    for keep in (True, False):
        step = advance(standing)
        assert await store.commit([step]) == [True]
        standing = advanced(standing, step)
        own_server.stop()
        lost = advance(standing)
        for refused in (store.commit([lost]), store.read(KEY, NOW), store.count("pump"), store.commit([lost])):
            with pytest.raises(StoreUnavailable) as error:
                await refused
            assert error.value.fields["retry_after"] == 1
        own_server.start()
        await come_back(store)
        assert await store.read(KEY, NOW) == standing, keep
        assert await store.commit([lost]) == [True], "nothing of it was applied while Redis was away"
        standing = advanced(standing, lost)
    await store.close()


async def test_a_redis_that_does_not_answer_is_waited_for_a_second_and_not_by_everybody(own_server: RedisServer):
    store = RedisStore(own_server.url)
    await store.open()
    standing = record()
    await store.commit([Begin(standing)])
    step = advance(standing)
    own_server.freeze()
    async with asyncio.timeout(1.9):
        refused = await asyncio.gather(*(store.commit([step]) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(error, StoreUnavailable) for error in refused)
    async with asyncio.timeout(0.5):
        with pytest.raises(StoreUnavailable):
            await store.read(KEY, NOW)
    own_server.thaw()
    await come_back(store)
    assert await store.commit([step]) == [True], "whether it was applied or not"
    assert await store.read(KEY, NOW) == advanced(standing, step)
    await store.close()


async def test_a_server_may_leave_after_its_redis(own_server: RedisServer):
    store = RedisStore(own_server.url)
    await store.open()
    own_server.stop()
    await store.close()


async def test_a_server_may_start_before_its_redis(own_server: RedisServer):
    own_server.stop()
    store = RedisStore(own_server.url)
    await store.open()
    with pytest.raises(StoreUnavailable):
        await store.commit([Begin(record())])
    own_server.start()
    await come_back(store)
    assert await store.commit([Begin(record())]) == [True]
    await store.close()


async def test_a_commit_whose_reply_was_lost_counts_as_applied_when_it_is_repeated(own_server: RedisServer):
    proxy = LossyProxy(own_server.port)
    await proxy.open()
    store = RedisStore(f"redis://127.0.0.1:{proxy.port}/0")
    await store.open()
    standing = record()
    await store.commit([Begin(standing)])
    for answer in (b"answer", None, b"answer"):
        step = advance(standing, answer)
        proxy.lose_replies = 1
        assert await store.commit([step]) == [True], "the call is made again on a new connection"
        assert proxy.lose_replies == 0
        standing = advanced(standing, step)
        assert await store.read(KEY, NOW) == standing
        step = advance(standing, answer)
        proxy.lose_replies = 2
        with pytest.raises(StoreUnavailable):
            await store.commit([step])
        await come_back(store)
        assert await store.commit([step]) == [True]
        assert await store.commit([other_content(step)]) == [False]
        standing = advanced(standing, step)
        assert await store.read(KEY, NOW) == standing
    await store.close()
    await proxy.close()


def other_content(step: Advance) -> Advance:
    return Advance(step.key, step.revision, step.new_revision, step.step, b"other", step.answer, step.last_used_at)


async def test_a_wrong_password_or_address_ends_the_start(own_server: RedisServer):
    with pytest.raises(SettingsInvalid, match="refuses the user or password"):
        await RedisStore(f"redis://nobody:wrong-password@127.0.0.1:{own_server.port}/0").open()
    with pytest.raises(SettingsInvalid, match="not an address"):
        await RedisStore("redis://127.0.0.1:port/0").open()


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
async def test_valkey_is_spoken_to_as_redis_is(redis_url: str, scheme: str):
    store = open_store(scheme + redis_url.removeprefix("redis"))
    await store.open()
    assert await store.commit([Begin(record())]) == [True]
    await store.close()


class LossyProxy:
    """Passes bytes on both ways; cuts the connection in place of the replies to scripts that are to be lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.lose_replies = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            while data := await reader.read(1 << 20):
                back.write(data)
                reply = await there.read(1 << 20)
                if b"EVALSHA" in data and self.lose_replies:
                    self.lose_replies -= 1
                    return
                writer.write(reply)
        finally:
            for end in (back, writer):
                end.close()
