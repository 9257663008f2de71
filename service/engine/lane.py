"""Requests that are ready to run, one a row, and which of them go first. Pure, like the scheduler that owns it."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

from service.engine.request import Batch, Request

_Entry = tuple[float, int, Request]
"""(due, turn, request)"""
_Key = tuple[int, str]
"""(steps ready, tenant)"""


class Ladder:
    """The chunk lengths that a row may run at, 1, 2, 4, ..., and the most rows that may run at each."""

    def __init__(self, rows: Mapping[int, int], *, whole: bool = False) -> None:
        """`whole`: any length is its own rung, for models that must see a sequence in one piece."""
        self.rows = dict(rows)
        self._whole = whole
        self._top = max(rows)
        self.refit(rows)

    def refit(self, rows: Mapping[int, int]) -> None:
        """Other counts of rows at the same chunk lengths; rows that wait keep theirs."""
        self.rows = {chunk: rows.get(chunk, 1) for chunk in self.rows}
        self._most_row_steps = max(length * most for length, most in self.rows.items())
        self._most_rows = max(self.rows.values())

    def rung(self, steps: int) -> int:
        """The longest chunk that `steps` waiting steps fill."""
        return steps if self._whole else min(1 << (steps.bit_length() - 1), self._top)

    def max_rows(self, chunk: int) -> int:
        return max(1, min(self._most_row_steps // chunk, self._most_rows)) if self._whole else self.rows[chunk]


class Lane:
    """Rows of one class. Where not all fit, tenants share by the steps served."""

    def __init__(self, *, by_due: bool) -> None:
        """`by_due`: the earliest due goes first; else rows take turns, so that a long one does not hold up the rest."""
        self._by_due = by_due
        self._heaps: dict[_Key, list[_Entry]] = {}
        self._removed: set[int] = set()  # turns of entries that still lie in a heap and count no more
        self._served: dict[str, float] = {}  # steps served of each tenant since last nobody had to wait
        self._floor = 0.0  # what the tenant had whose turn it was last: one that was away starts here, without credit
        self._turn = 0
        self.num_requests = 0
        """Of all that wait or run, those behind others of their slot too."""
        self.seconds = 0.0
        """What they cost at full batches."""

    def __bool__(self) -> bool:
        return bool(self._heaps)

    def uncount(self, request: Request) -> None:
        self.num_requests -= 1
        self.seconds = self.seconds - request.cost_seconds if self.num_requests else 0.0  # no rounding is carried on

    def push(self, request: Request, chunk: int) -> None:
        request.turn = self._turn = self._turn + 1
        entry = (request.due if self._by_due else 0.0, request.turn, request)
        heap = self._heaps.get((chunk, request.tenant))
        if heap:
            heappush(heap, entry)
        else:
            self._heaps[chunk, request.tenant] = [entry]

    def remove(self, request: Request, chunk: int) -> None:
        self._removed.add(request.turn)
        self._tidy((chunk, request.tenant))

    def peek(self, ladder: Ladder) -> tuple[int, int]:
        """(rows, steps) of the batch that `take` would give, at most."""
        steps, keys, _ = self._choose(ladder)
        return min(sum(len(self._heaps[key]) for key in keys), ladder.max_rows(steps)), steps

    def take(self, ladder: Ladder) -> Batch:
        """The most urgent row says the chunk length; every row that can run at it comes along, as far as they fit."""
        steps, keys, first = self._choose(ladder)
        self._floor = self._served_of(first)
        most = ladder.max_rows(steps)
        if sum(len(self._heaps[key]) for key in keys) > most:
            return Batch(self._share(keys, most, steps), steps)
        entries = [entry for key in keys for entry in self._heaps.pop(key)]
        if self._removed:
            gone = {turn for _, turn, _ in entries} & self._removed
            self._removed -= gone
            entries = [entry for entry in entries if entry[1] not in gone]
        if self._served:  # a run with few rows takes about as long as a full one; the others only came along
            self._served[first] = self._floor + steps * most
            self._forget()
        return Batch([request for _, _, request in entries], steps)

    def _choose(self, ladder: Ladder) -> tuple[int, list[_Key], str]:
        """(steps, the rows that can run at them, whose turn it is).

        While some wait because not all fitted, it is the turn of the tenant that was served least.
        """
        firsts = ((heap[0][:2], key) for key, heap in self._heaps.items())
        if self._served:
            _, _, key = min((self._served_of(key[1]), first, key) for first, key in firsts)
        else:
            _, key = min(firsts)
        steps = ladder.rung(key[0])
        return steps, [other for other in self._heaps if ladder.rung(other[0]) == steps], key[1]

    def _served_of(self, tenant: str) -> float:
        return max(self._served.get(tenant, 0.0), self._floor)

    def _forget(self) -> None:
        """Those that would begin at the floor anyhow; and all of them, once nobody had to wait."""
        self._served = {name: served for name, served in self._served.items() if self._heaps and served > self._floor}

    def _share(self, keys: list[_Key], most: int, steps: int) -> list[Request]:
        """`most` rows, each from the tenant that was served least so far."""
        keys_of: dict[str, list[_Key]] = {}
        for key in keys:
            keys_of.setdefault(key[1], []).append(key)
        line = [(self._served_of(tenant), tenant) for tenant in keys_of]
        heapify(line)
        taken: list[Request] = []
        while line and len(taken) < most:
            served, tenant = heappop(line)
            taken.append(self._pop_first(keys_of[tenant]))
            self._served[tenant] = served + steps
            if keys_of[tenant]:
                heappush(line, (served + steps, tenant))
        self._forget()
        return taken

    def _pop_first(self, keys: list[_Key]) -> Request:
        """The first row of these heaps; a heap that is empty then is taken out of `keys`."""
        key = min(keys, key=lambda key: self._heaps[key][0][:2])
        request = heappop(self._heaps[key])[2]
        self._tidy(key)
        if key not in self._heaps:
            keys.remove(key)
        return request

    def _tidy(self, key: _Key) -> None:
        """Let the heap begin with a row that waits, or be gone."""
        heap = self._heaps[key]
        while heap and heap[0][1] in self._removed:
            self._removed.discard(heappop(heap)[1])
        if not heap:
            del self._heaps[key]
