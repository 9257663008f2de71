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
        self._line: deque[tuple[bool, asyncio.Future[None]]] = deque()

    @property
    def busy(self) -> bool:
        """Is anybody inside or in line?"""
        return self._inside > 0 or bool(self._line)

    async def enter(self, *, alone: bool) -> None:
        """Go in once everybody who came before has, and, if `alone` or somebody is, has left."""
        if not self._line and not self._waking and self._may_enter(alone):
            self._let_in(alone)
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((alone, mine))
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                self._line.remove((alone, mine))
                self._call_next()
            else:
                self._waking -= 1
                self.leave()  # let in at the very moment of the cancellation
            raise
        self._waking -= 1
        self._call_next()  # whoever came meanwhile waits only so as not to overtake

    def leave(self) -> None:
        self._inside -= 1
        self._alone = False
        self._call_next()

    def _may_enter(self, alone: bool) -> bool:
        return not self._alone and not (alone and self._inside)

    def _let_in(self, alone: bool) -> None:
        self._inside += 1
        self._alone = alone

    def _call_next(self) -> None:
        while self._line and self._may_enter(self._line[0][0]):
            alone, place = self._line[0]
            if place.cancelled():
                return  # it takes itself out of the line, and calls the next
            self._line.popleft()
            self._let_in(alone)
            self._waking += 1
            place.set_result(None)
