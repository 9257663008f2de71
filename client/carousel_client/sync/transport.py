"""Carries out the effects of a piece of work, blocking."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from carousel_client.core.calls import Effect, Pause, Work
from carousel_client.core.retries import Pace

T = TypeVar("T")


class Transport:
    def __init__(
        self, http: httpx.Client, pace: Pace, timeout: float, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.http, self.pace, self.timeout, self.sleep = http, pace, timeout, sleep

    def run(self, work: Work[T]) -> T:
        """What the work comes to."""
        try:
            effect = next(work)
            while True:
                try:
                    response = self._carry_out(effect)
                except httpx.TransportError as error:
                    effect = work.throw(error)
                else:
                    effect = work.send(response)
        except StopIteration as end:
            result: T = end.value
            return result

    def _carry_out(self, effect: Effect) -> httpx.Response | None:
        if isinstance(effect, Pause):
            self.sleep(effect.seconds)
            return None
        response = self.http.send(effect.request(self.http), stream=effect.streamed)
        if effect.streamed and not response.is_success:
            response.read()
        return response
