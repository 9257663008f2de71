"""Carries out the effects of a piece of work on asyncio's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

from carousel_client.core.calls import Effect, Pause, Work
from carousel_client.core.retries import Pace

T = TypeVar("T")


class AsyncTransport:
    def __init__(
        self,
        http: httpx.AsyncClient,
        pace: Pace,
        timeout: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.http, self.pace, self.timeout, self.sleep = http, pace, timeout, sleep

    async def run(self, work: Work[T]) -> T:
        """What the work comes to."""
        try:
            effect = next(work)
            while True:
                try:
                    response = await self._carry_out(effect)
                except httpx.TransportError as error:
                    effect = work.throw(error)
                else:
                    effect = work.send(response)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _carry_out(self, effect: Effect) -> httpx.Response | None:
        if isinstance(effect, Pause):
            await self.sleep(effect.seconds)
            return None
        response = await self.http.send(effect.request(self.http), stream=effect.streamed)
        if effect.streamed and not response.is_success:
            await response.aread()
        return response
