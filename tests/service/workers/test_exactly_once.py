"""Workers are killed under callers who repeat what was not answered: each step is done once, whoever answers."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.service.api.clients import SUM
from tests.service.api.socket_server import Answer, Caller, Wire, get, open_wire, post, steps_path
from tests.service.workers.wires import settle

AT_ONCE = 2
"""Connections of a caller."""


class Repeater:
    """Steps one sequence over several connections, and knows what its sum must be."""

    def __init__(self, wire: Wire, name: str, tally: Counter[str]) -> None:
        self.path, self.step, self.sums = steps_path(SUM, name), 0, [0, 0]
        self._wire, self._tally = wire, tally
        self._chance = random.Random(name)
        self._callers: list[Caller | None] = [None] * AT_ONCE

    def run(self, over: threading.Event) -> None:
        while not over.is_set():
            self._go_on()
        for caller in self._callers:
            if caller is not None:
                caller.close()

    def _go_on(self) -> None:
        inputs = [[self._chance.randint(-9, 9), self._chance.randint(-9, 9)] for _ in range(self._chance.randint(1, 3))]
        document = {"inputs": inputs, "step": self.step, "start": self.step == 0, "outputs": "last"}
        request = post(self.path, json.dumps(document).encode())
        self.step += len(inputs)
        self.sums = [self.sums[n] + sum(x[n] for x in inputs) for n in range(2)]
        repeats = self.step == len(inputs) or self._chance.random() < 0.2
        for _ in range(1 + repeats):  # an answer that came may be lost on the last mile
            answer = self._call(request)
            assert (answer.status, answer.document["step"]) == (200, self.step), answer
            assert answer.document["outputs"] == [self.sums], answer
            self._tally["replayed"] += answer.document["replayed"]
        self._tally["calls"] += 1

    def _call(self, request: bytes) -> Answer:
        place = self._chance.randrange(AT_ONCE)
        while True:
            caller = self._callers[place] = self._callers[place] or self._wire.connect()
            try:
                return caller.call(request)
            except (ConnectionError, EOFError):
                self._tally["lost"] += 1
                caller.close()
                self._callers[place] = None


def kill_one(wire: Wire, tally: Counter[str]) -> int:
    """Of the workers, one that has connections; until its callers know, and another has come up in its place."""
    pool = wire.server.workers
    assert pool is not None
    num_workers = wire.app.state.service.settings.workers
    wire.wait_until(lambda: any(worker.num_connections for worker in pool._workers))
    pid = wire.ask(lambda: max(pool._workers, key=lambda worker: worker.num_connections).process.pid)
    lost = tally["lost"]
    os.kill(pid, signal.SIGKILL)
    wire.wait_until(lambda: pid not in pool.pids and tally["lost"] > lost)
    wire.wait_until(lambda: len(pool.pids) == num_workers and all(one.ready.is_set() for one in pool._workers))
    return int(pid)


@pytest.mark.parametrize(("store", "num_callers", "num_kills"), [("memory", 32, 3), ("sqlite", 8, 1)])
def test_no_step_is_lost_or_doubled_when_workers_are_killed(
    sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, num_callers: int, num_kills: int
) -> None:
    monkeypatch.setattr("service.workers.pool.REST_SECONDS", 0.0)
    tally, over = Counter[str](), threading.Event()
    setting = "memory" if store == "memory" else f"sqlite:///{tmp_path / 'states'}"
    with open_wire(sums, workers=2, state_store=setting) as wire, ThreadPoolExecutor(num_callers) as threads:
        repeaters = [Repeater(wire, f"r-{n}", tally) for n in range(num_callers)]
        running = [threads.submit(repeater.run, over) for repeater in repeaters]
        try:
            killed = [kill_one(wire, tally) for _ in range(num_kills)]
            told = tally["calls"]
            wire.wait_until(lambda: tally["calls"] > told + num_callers or any(one.done() for one in running))
        finally:
            over.set()
        for one in running:
            one.result(30)
        assert tally["replayed"]
        caller = wire.connect()
        for repeater in repeaters:
            state = caller.call(get(repeater.path.replace("/steps", "/state"))).document
            assert (state["step"], state["state"]["h"]) == (repeater.step, [repeater.sums])
        pool = wire.server.workers
        assert pool is not None
        assert not {*killed} & {*pool.pids}
        wire.wait_until(lambda: not any(worker.num_connections for worker in pool._workers))
        for _ in range(2):
            settle(wire, wire.connect())
        assert wire.ask(lambda: [worker.num_connections for worker in pool._workers]) == [1, 1], "the new one has some"
