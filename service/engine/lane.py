"""Requests that are ready to run, one a row, and which of them go first. Pure, like the scheduler that owns it."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush, merge
from itertools import islice

from service.engine.request import Batch, Request

_Entry = tuple[float, int, Request]
"""(due, turn, request)"""


class Ladder:
    """The chunk lengths that a row may run at, 1, 2, 4, ..., and the most rows that may run at each."""

    def __init__(self, rows: Mapping[int, int], *, whole: bool = False) -> None:
        """`whole`: any length is its own rung, for models that must see a sequence in one piece."""
        self.rows = dict(rows)
        self._whole = whole
        self._top = max(rows)
        self._most_row_steps = max(length * most for length, most in rows.items())
        self._most_rows = max(rows.values())

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
        self._heaps: dict[tuple[int, str], list[_Entry]] = {}  # (steps ready, tenant) -> its rows
        self._served: dict[str, float] = {}  # steps served of each tenant that waits or waited just now
        self._floor = 0.0  # a tenant that was away starts here: it has neither credit nor debt
        self._turn = 0

    def __bool__(self) -> bool:
        return bool(self._heaps)

    def push(self, request: Request, chunk: int) -> None:
        self._turn += 1
        entry = (request.due if self._by_due else 0.0, self._turn, request)
        heappush(self._heaps.setdefault((chunk, request.tenant), []), entry)

    def remove(self, request: Request, chunk: int) -> None:
        key = (chunk, request.tenant)
        rest = [entry for entry in self._heaps.pop(key) if entry[2] is not request]
        if rest:
            heapify(rest)
            self._heaps[key] = rest

    def peek(self, ladder: Ladder) -> tuple[int, int]:
        """(rows, steps) of the batch that `take` would give."""
        steps, heaps = self._choose(ladder)
        return min(sum(map(len, heaps.values())), ladder.max_rows(steps)), steps

    def take(self, ladder: Ladder) -> Batch:
        """The most urgent row says the chunk length; every row that can run at it comes along, as far as they fit."""
        steps, heaps = self._choose(ladder)
        most = ladder.max_rows(steps)
        if sum(map(len, heaps.values())) <= most:
            requests = [request for heap in heaps.values() for _, _, request in heap]
            for key in heaps:
                del self._heaps[key]
        else:
            requests = self._share(heaps, most, steps)
        return Batch(requests, steps)

    def _choose(self, ladder: Ladder) -> tuple[int, dict[tuple[int, str], list[_Entry]]]:
        _, chunk = min((heap[0][:2], key[0]) for key, heap in self._heaps.items())
        steps = ladder.rung(chunk)
        return steps, {key: heap for key, heap in self._heaps.items() if ladder.rung(key[0]) == steps}

    def _share(self, heaps: dict[tuple[int, str], list[_Entry]], most: int, steps: int) -> list[Request]:
        """`most` rows, each from the tenant that was served least so far."""
        rows_of = {tenant: merge(*(sorted(h) for k, h in heaps.items() if k[1] == tenant)) for _, tenant in heaps}
        if len(rows_of) == 1:
            taken = list(islice(next(iter(rows_of.values())), most))
        else:
            taken = []
            line = [(max(self._served.get(tenant, 0.0), self._floor), tenant) for tenant in rows_of]
            heapify(line)
            while len(taken) < most:
                served, tenant = heappop(line)
                if entry := next(rows_of[tenant], None):
                    taken.append(entry)
                    self._floor = served
                    self._served[tenant] = served + steps
                    heappush(line, (served + steps, tenant))
        self._drop(heaps, {turn for _, turn, _ in taken})
        return [request for _, _, request in taken]

    def _drop(self, heaps: dict[tuple[int, str], list[_Entry]], turns: set[int]) -> None:
        for key, heap in heaps.items():
            rest = [entry for entry in heap if entry[1] not in turns]
            if rest:
                heapify(rest)
                self._heaps[key] = rest
            else:
                del self._heaps[key]
        waiting = {tenant for _, tenant in self._heaps}
        self._served = {tenant: served for tenant, served in self._served.items() if tenant in waiting}
