"""Who may go on with a sequence: calls pass in the order of arrival, steps side by side, everything else alone."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """A fair lock with two ways in. Whoever entered must `leave`."""

    __slots__ = ("_alone", "_inside", "_line", "_waking")

    def __init__(self) -> None:
        self._inside = 0
        self._alone = False
        self._waking = 0  # of those inside: let in from the line, and not running yet
        self._line: deque[tuple[bool, asyncio.Future[None]]] | None = None  # made when somebody has to wait

    @property
    def busy(self) -> bool:
        """Is anybody inside or in line?"""
        return self._inside > 0 or bool(self._line)

    async def enter(self, *, alone: bool) -> None:
        """Go in once everybody who came before has, and, if `alone` or somebody is, has left."""
        if not self.try_enter(alone=alone):
            await self._wait(alone)

    def try_enter(self, *, alone: bool) -> bool:
        """Go in if there is no need to wait. False: use `enter`."""
        if self._line or self._waking or not self._may_enter(alone):
            return False
        self._let_in(alone)
        return True

    async def _wait(self, alone: bool) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._line is None:
            self._line = deque()
        line = self._line
        line.append((alone, mine))
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                line.remove((alone, mine))
                self._call_next()
            else:
                self._waking -= 1
                self.leave()  # let in at the very moment of the cancellation
            raise
        self._waking -= 1
        self._call_next()  # whoever came meanwhile waits only so as not to overtake

    def share(self) -> None:
        """Whoever is inside alone lets those beside it who need not be alone."""
        self._alone = False
        self._call_next()

    def leave(self) -> None:
        self._inside -= 1
        self._alone = False
        if self._line:
            self._call_next()

    def _may_enter(self, alone: bool) -> bool:
        return not self._alone and not (alone and self._inside)

    def _let_in(self, alone: bool) -> None:
        self._inside += 1
        self._alone = alone

    def _call_next(self) -> None:
        line = self._line
        while line and self._may_enter(line[0][0]):
            alone, place = line[0]
            if place.cancelled():
                return  # it takes itself out of the line, and calls the next
            line.popleft()
            self._let_in(alone)
            self._waking += 1
            place.set_result(None)
