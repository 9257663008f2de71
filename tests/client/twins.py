"""The blocking and the asynchronous client, spoken to in one way: what may be awaited is, what may be entered is."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from carousel_client import AsyncClient, Client

TWINS = {"sync": Client, "async": AsyncClient}


async def got(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def listed(steps: Any) -> list[Any]:
    return [step async for step in steps] if hasattr(steps, "__aiter__") else list(steps)


@asynccontextmanager
async def entered(thing: Any) -> AsyncIterator[Any]:
    if hasattr(thing, "__aenter__"):
        async with thing as inside:
            yield inside
    else:
        with thing as inside:
            yield inside


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, kind: str) -> None:
        self._is_async = kind == "async"
        self._time = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self._time

    def sleep(self, seconds: float) -> Any:
        self.slept.append(seconds)
        self._time += seconds
        return self._nothing() if self._is_async else None

    async def _nothing(self) -> None:
        pass


def client_of(kind: str, address: str, **options: Any) -> Any:
    return TWINS[kind](address, **options)
