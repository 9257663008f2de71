"""A store in one SQLite file: every committed step is there when the process is killed.

One thread owns the file. Commits that come while it is busy go into one transaction.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import monotonic, time
from typing import Any, TypeVar

import structlog

from service.errors import SettingsInvalid, StartupError
from service.stores.secret_file import keep_in_file
from service.stores.sqlite.file import ERRORS, FileDamaged, FileInUse, Lock, Synchronous, is_corrupt, read_log
from service.stores.sqlite.ledger import Ledger
from service.stores.sqlite.recovery import open_file, rebuild
from service.stores.store import Change, Key, Record, Tombstone, store_unavailable

log = structlog.get_logger(__name__)
T = TypeVar("T")

LOOK_SECONDS = 0.05

SECRET_NAME = "token.key"
"""Beside the file."""


@dataclass(slots=True)
class _Job:
    """Work for the thread: changes to commit, or a call on the ledger."""

    future: asyncio.Future[Any]
    changes: Sequence[Change] = ()
    call: Callable[[Ledger], Any] | None = None


class SqliteStore:
    """`path` names the file; its log and its lock stand beside it."""

    write_through = True
    shared = False

    def __init__(
        self,
        path: Path,
        synchronous: Synchronous = "normal",
        patience_seconds: float = 0.0,
        clock: Callable[[], float] = time,
    ) -> None:
        """`full` waits for the disk at each commit, so that not even power loss undoes one.

        `patience_seconds`: how long another process may take to let go of the file, as the one before this does.
        """
        self._path = path
        self._synchronous: Synchronous = synchronous
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: Thread | None = None

    async def open(self) -> None:
        lock = await self._take_lock()
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._thread = Thread(target=self._run, args=(lock, opened), name="state store", daemon=True)
        self._thread.start()
        await opened

    async def _take_lock(self) -> Lock:
        until, told = monotonic() + self._patience_seconds, False
        while True:
            try:
                return Lock(self._path)
            except FileInUse:
                if monotonic() >= until:
                    raise
            if not told:
                log.warning("state_store_in_use", path=str(self._path), waits_seconds=self._patience_seconds)
                told = True
            await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def commit(self, changes: Sequence[Change]) -> list[bool]:
        job = _Job(asyncio.get_running_loop().create_future(), changes=changes)
        self._jobs.put(job)
        applied: list[bool] = await job.future
        return applied

    async def read(self, key: Key, now: float) -> Record | Tombstone | None:
        return await self._call(lambda ledger: ledger.read(key, now))

    async def expire(self, now: float, most: int) -> list[Key]:
        return await self._call(lambda ledger: ledger.expire(now, most))

    async def count(self, model: str) -> int:
        return await self._call(lambda ledger: ledger.count(model))

    async def keep_secret(self, made: bytes) -> bytes | None:
        try:
            return await asyncio.to_thread(keep_in_file, self._path.with_name(SECRET_NAME), made)
        except OSError as error:
            raise SettingsInvalid(
                f"CAROUSEL_STATE_STORE: the key beside {self._path} cannot be used: {error}."
            ) from error

    async def list(self, tenant: str, model: str, *, after: str, most: int, now: float) -> list[Record]:
        return await self._call(lambda ledger: ledger.list(tenant, model, after, most, now))

    async def _call(self, call: Callable[[Ledger], T]) -> T:
        job = _Job(asyncio.get_running_loop().create_future(), call=call)
        self._jobs.put(job)
        found: T = await job.future
        return found

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _run(self, lock: Lock, opened: asyncio.Future[None]) -> None:
        try:
            self._open_file()
        except BaseException as error:
            lock.release()
            _tell([opened], error=error)
            return
        _tell([opened], [None])
        try:
            self._work()
            self._file.close()
        finally:
            lock.release()

    def _open_file(self) -> None:
        self._file = open_file(self._path, self._synchronous, self._clock)
        self._ledger = Ledger(self._file)

    def _work(self) -> None:
        waiting: deque[_Job | None] = deque()
        while True:
            job = waiting.popleft() if waiting else self._jobs.get()
            if job is None:
                return
            if job.call is not None:
                self._answer([job], lambda call=job.call: [call(self._ledger)])  # type: ignore[misc]
                continue
            commits = [job]
            while not self._jobs.empty():
                waiting.append(self._jobs.get())
            while waiting and (more := waiting[0]) and more.call is None:
                commits.append(more)
                waiting.popleft()
            self._answer(commits, lambda commits=commits: self._commit(commits))  # type: ignore[misc]

    def _commit(self, jobs: Sequence[_Job]) -> Sequence[Any]:
        applied = iter(self._ledger.commit([change for job in jobs for change in job.changes]))
        return [list(islice(applied, len(job.changes))) for job in jobs]

    def _answer(self, jobs: Sequence[_Job], work: Callable[[], Sequence[Any]]) -> None:
        futures = [job.future for job in jobs]
        try:
            _tell(futures, self._on_sound_file(work))
        except BaseException as error:  # whatever it is, those who wait for it must hear of it
            _tell(futures, error=error)

    def _on_sound_file(self, work: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        """Do `work`; if the file turns out to be damaged, once more on what is sound of it."""
        try:
            try:
                return work()
            except FileDamaged as error:
                damaged = error
            except ERRORS as error:
                if not is_corrupt(error):
                    raise
                damaged = FileDamaged(str(error), read_log(self._path))
            self._file.close()
            rebuild(self._path, damaged, self._clock())
            self._open_file()
            return work()
        except (*ERRORS, OSError, FileDamaged, StartupError) as error:
            log.error("state_store_failed", path=str(self._path), reason=str(error))
            raise store_unavailable() from error


def _tell(futures: list[asyncio.Future[Any]], results: Sequence[Any] = (), error: BaseException | None = None) -> None:
    """Wake those who wait, on their loop; once for all of a transaction."""

    def wake() -> None:
        for place, future in enumerate(futures):
            if future.done():
                continue  # cancelled: what it asked for happened all the same
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(results[place])

    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        futures[0].get_loop().call_soon_threadsafe(wake)
