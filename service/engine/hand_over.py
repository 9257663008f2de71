"""One thread that runs the model, so that the event loop goes on meanwhile. It knows no engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any


class HandOver:
    """What an executor of one thread does, without the second future and its locks: some 3 % of a run of 4 ms."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)

    def run(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Call it in the thread, one call after the other."""
        if self._thread.ident is None:
            self._thread.start()
        ended = asyncio.get_running_loop().create_future()
        self._calls.put((function, arguments, ended))
        return ended

    def stop(self) -> None:
        """Wait for the calls that were handed over."""
        if self._thread.ident is not None:
            self._calls.put(None)
            self._thread.join()

    def _work(self) -> None:
        while call := self._calls.get():
            _carry_out(*call)
            del call  # it holds the model


_Call = tuple[Callable[..., Any], tuple[Any, ...], "asyncio.Future[Any]"]


def _carry_out(function: Callable[..., Any], arguments: tuple[Any, ...], ended: asyncio.Future[Any]) -> None:
    tell = ended.set_result
    try:
        outcome = function(*arguments)
    except Exception as error:
        tell, outcome = ended.set_exception, error
    ended.get_loop().call_soon_threadsafe(_end, ended, tell, outcome)


def _end(ended: asyncio.Future[Any], tell: Callable[[Any], None], outcome: Any) -> None:
    if not ended.done():  # nobody waits for it any more
        tell(outcome)
