"""Calls come to a sequence and leave it: whose turn it is, whether it is alive, and that its lease begins anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.census import Census
from service.errors import Stale
from service.residence import Residence
from service.sequence import Sequence, gone
from service.turns import Turns


class Visits:
    """Whoever entered the turns of a sequence must `leave` it."""

    def __init__(self, residence: Residence, census: Census) -> None:
        self._residence = residence
        self._census = census

    def is_here(self, sequence: Sequence) -> bool:
        """Has it a row? If not it ended, or made room for another and can be found again."""
        return sequence.left_at is None

    def renew(self, sequence: Sequence) -> None:
        """Begin its lease anew.

        Raises SequenceGone if it ended while the call waited for its turn, Stale if it is to be found again.
        """
        if sequence.end_reason:
            raise gone(sequence.end_reason)
        if not self.is_here(sequence):
            raise Stale("The sequence moved while the call waited for its turn. Send it again.")
        self._residence.renew(sequence)

    @asynccontextmanager
    async def turn(self, sequence: Sequence) -> AsyncIterator[None]:
        """Wait for one's turn; then the sequence is alive and nothing else of it runs; renew its lease."""
        turns = sequence.make_turns()
        await turns.enter(alone=True)
        try:
            self.renew(sequence)
            yield
            self._residence.renew(sequence)
        finally:
            self.leave(sequence, turns)

    def leave(self, sequence: Sequence, turns: Turns) -> None:
        turns.leave()
        if not turns.busy:
            sequence.turns = None  # an idle sequence holds nothing that it does not need
            if sequence.tentative:
                self.discard(sequence)

    def confirm(self, sequence: Sequence) -> None:
        """A call succeeded."""
        self._residence.renew(sequence)
        if sequence.tentative:
            sequence.tentative = False
            self._census.begun(sequence.model)

    def discard(self, sequence: Sequence) -> None:
        """Undo a tentative beginning, unless a call succeeded since or is under way."""
        if sequence.tentative and not sequence.is_busy and self.is_here(sequence):
            self._residence.move_out(sequence)
