"""When a call is sent again, and how long to wait before. Neither sleeps nor knows what is sent."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from carousel_client.errors import CarouselError, ConnectionFailed

OVERLOADED = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class Retry:
    """Calls that can do no harm twice are sent again after connection errors and after answers with these statuses.

    Waits grow from `first_seconds` twofold up to `max_seconds`, each drawn between nothing and all of that, and are
    never shorter than what `Retry-After` asks for. No attempt begins later than `total_seconds` after the first;
    0 never tries again.
    """

    statuses: frozenset[int] = OVERLOADED
    first_seconds: float = 0.1
    max_seconds: float = 5.0
    total_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Where time and chance come from."""

    retry: Retry = field(default_factory=Retry)
    now: Callable[[], float] = time.monotonic
    """Seconds, from anywhere."""
    draw: Callable[[], float] = random.random
    """From 0 up to 1."""

    def wants_again(self, failure: CarouselError) -> bool:
        return isinstance(failure, ConnectionFailed) or failure.status in self.retry.statuses


class Attempts:
    """At one call, or at one connection until it works."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._began = pace.now()
        self._failures = 0

    def wait_after(self, failure: CarouselError) -> float:
        """Seconds until the next attempt. Raises the failure itself where there is to be none."""
        retry = self._pace.retry
        longest = min(retry.max_seconds, retry.first_seconds * 2.0 ** min(self._failures, 60))
        self._failures += 1
        wait = longest * self._pace.draw() + (failure.retry_after or 0.0)
        if self._pace.now() + wait > self._began + retry.total_seconds:
            raise failure
        return wait
