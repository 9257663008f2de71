"""The one connection to Redis, and the one task that speaks on it.

A call that is cancelled while its reply is under way would leave that reply to the next call on the connection
(CVE-2023-28858). Here callers never touch the connection: they hand over work and wait for a future.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import structlog
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, NoScriptError, RedisError

from service.errors import SettingsInvalid, StoreUnavailable
from service.stores.store import store_unavailable

log = structlog.get_logger(__name__)
T = TypeVar("T")
Work = Callable[["Link"], Awaitable[T]]

REPLY_SECONDS = 1.0
"""Longest wait for a reply; then it counts as lost."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 3.0

_FAILURES = (RedisError, OSError, TimeoutError)


class Link:
    """Work in the order in which it came. While Redis is away all of it is refused at once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: deque[tuple[Work[Any], asyncio.Future[Any]]] = deque()
        self._arrived = asyncio.Event()
        self._is_away = True
        self._task: asyncio.Task[None] | None = None
        self._shas: dict[str, str] = {}

    async def open(self) -> None:
        """Raises SettingsInvalid when Redis refuses us; if it is only away, it is looked for from now on."""
        try:
            pool = ConnectionPool.from_url(
                self._url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=REPLY_SECONDS, protocol=2
            )
            self._connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise SettingsInvalid(f"CAROUSEL_STATE_STORE: not an address of Redis: {error}.") from None
        try:
            await self._greet()
        except AuthenticationError as error:
            await self._hang_up()
            raise SettingsInvalid(f"CAROUSEL_STATE_STORE: Redis refuses the user or password: {error}.") from None
        except _FAILURES as error:
            log.warning("state_store_away", reason=str(error))
        self._task = asyncio.create_task(self._run(), name="state store")

    async def close(self) -> None:
        """Do what was handed over, then hang up."""
        if self._task is None:
            return
        if not self._is_away and not self._task.done():
            with suppress(StoreUnavailable):  # it left before us
                await self.do(lambda _: _nothing())
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._refuse_all()
        await self._hang_up()

    async def do(self, work: Work[T]) -> T:
        """What `work` returns, in its turn. Raises StoreUnavailable."""
        if self._is_away:
            raise store_unavailable()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        self._arrived.set()
        return await future

    # -- for work, in its turn ---------------------------------------------------------------------------------------

    async def call(self, *command: Any) -> Any:
        return (await self.calls([command]))[0]

    async def calls(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Replies to all commands, in one round trip."""
        async with asyncio.timeout(REPLY_SECONDS):
            await self._connection.send_packed_command(self._connection.pack_commands(commands))
            return [await self._connection.read_response() for _ in commands]

    async def run(self, script: str, keys: list[bytes], arguments: list[Any]) -> Any:
        """A script, loaded once a connection."""
        if script not in self._shas:
            self._shas[script] = await self.call("SCRIPT LOAD", script)
        try:
            return await self.call("EVALSHA", self._shas[script], len(keys), *keys, *arguments)
        except NoScriptError:  # Redis forgets them when it starts anew
            del self._shas[script]
            return await self.run(script, keys, arguments)

    # -- the task ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            if self._is_away:
                await self._find_again()
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            work, future = self._waiting.popleft()
            if not future.done():
                await self._do(work, future)

    async def _do(self, work: Work[Any], future: asyncio.Future[Any]) -> None:
        try:
            result = await self._try_twice(work)
        except asyncio.CancelledError:
            future.cancel()
            raise
        except _FAILURES as error:
            log.warning("state_store_away", reason=str(error) or type(error).__name__)
            self._is_away = True
            await self._hang_up()
            _fail(future, store_unavailable())
            self._refuse_all()
        except Exception as error:  # of whoever asked
            _fail(future, error)
        else:
            if not future.done():
                future.set_result(result)

    async def _try_twice(self, work: Work[Any]) -> Any:
        """A connection that broke while nobody used it shows at the next call: that one is made again on a new one."""
        try:
            return await work(self)
        except TimeoutError:
            raise  # it had its time
        except (ConnectionError, OSError):
            await self._hang_up()
            await self._greet()
            return await work(self)

    async def _find_again(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._greet()
            except _FAILURES:
                await self._hang_up()
                # at random: replicas that lost it together do not come back together
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                log.info("state_store_back")
                return

    async def _greet(self) -> None:
        async with asyncio.timeout(REPLY_SECONDS):
            await self._connection.connect()  # type: ignore[no-untyped-call]
        await self.call("PING")
        self._is_away = False

    async def _hang_up(self) -> None:
        self._shas.clear()
        with suppress(*_FAILURES):
            await self._connection.disconnect(nowait=True)

    def _refuse_all(self) -> None:
        while self._waiting:
            _fail(self._waiting.popleft()[1], store_unavailable())


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


async def _nothing() -> None:
    """The last work of all: what came before it is done."""
