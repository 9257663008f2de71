"""Two servers on one Redis are asked for the same thing at once: one of them is first, and the other says so."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.service.stores.redis_server import RedisServer
from tests.torture.caller import Answer, Caller
from tests.torture.conftest import LSTM, SUM
from tests.torture.course import Array, Offline
from tests.torture.replica import Replica

pytestmark = pytest.mark.anyio

SEQUENCES = 100
OK, CONFLICT, GONE = 200, 409, 410


@dataclass
class Contest:
    """One sequence, which two servers step. `inputs` and `outputs` are those that were accepted."""

    model: str
    name: str
    callers: tuple[Caller, Caller]
    offline: Offline
    chance: random.Random
    tally: Counter[str]
    inputs: list[Array] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)
    num_forks: int = 0

    @property
    def path(self) -> str:
        return f"/v1/models/{self.model}/sequences/{self.name}"

    @property
    def step(self) -> int:
        return sum(len(inputs) for inputs in self.inputs)

    async def run(self, rounds: int) -> None:
        ways = [self.other_inputs, self.same_inputs, self.without_a_step, self.ahead, self.peek, self.fork]
        for _ in range(rounds):
            await self.chance.choices(ways, [50, 15, 10, 10, 10, 5])[0]()
        await self.is_as_offline()
        await self.delete_beside_a_step()

    async def other_inputs(self) -> None:
        """Never two that are done."""
        asked = [self.draw(), self.draw(unlike=True)]
        answers = await self.both(*(self.steps(n, inputs, self.step) for n, inputs in enumerate(asked)))
        assert sorted(answer.status for answer in answers) == [OK, CONFLICT], (self.name, answers)
        winner = [answer.status for answer in answers].index(OK)
        begun_at = self.step
        self.accept(asked[winner], answers[winner], replayed=False)
        told = answers[1 - winner].document
        assert (told["code"], told["expected_step"]) == ("step_conflict", self.step), (begun_at, told)
        self.tally["one 200 and one 409"] += 1

    async def same_inputs(self) -> None:
        """Both are answered, by one run."""
        inputs, at = self.draw(), self.step
        answers = await self.both(*(self.steps(n, inputs, at) for n in range(2)))
        assert sorted(answer.document["replayed"] for answer in answers) == [False, True], (self.name, answers)
        assert answers[0].document["outputs"] == answers[1].document["outputs"]
        first = next(answer for answer in answers if not answer.document["replayed"])
        self.accept(inputs, first, replayed=False)
        self.tally["one 200 and its replay"] += 1

    async def without_a_step(self) -> None:
        """Both are done, one after the other."""
        asked = [self.draw() for _ in range(2)]
        answers = await self.both(*(self.steps(n, inputs, None) for n, inputs in enumerate(asked)))
        for n in sorted(range(2), key=lambda n: answers[n].document["step"]):
            self.accept(asked[n], answers[n], replayed=False)
        self.tally["two 200 without a step"] += 1

    async def ahead(self) -> None:
        """The next call is sent to the other server before the answer to this one is there."""
        asked, at = [self.draw() for _ in range(2)], self.step
        now, later = await self.both(self.steps(0, asked[0], at), self.steps(1, asked[1], at + len(asked[0])))
        self.accept(asked[0], now, replayed=False)
        if later.status != OK:
            assert (later.status, later.document["expected_step"]) == (CONFLICT, at), (self.name, later)
            later = await self.steps(1, asked[1], self.step)
        self.accept(asked[1], later, replayed=False)
        self.tally["sent ahead"] += 1

    async def peek(self) -> None:
        """What is only tried moves nothing, and is of the state before or after the step beside it."""
        tried, inputs, at = self.draw(), self.draw(), self.step
        seen, done = await self.both(self.steps(0, tried, None, commit=False), self.steps(1, inputs, at))
        before = [*self.inputs]
        self.accept(inputs, done, replayed=False)
        if seen.document["step"] != at + len(tried):
            before.append(inputs)
            assert seen.document["step"] == self.step + len(tried), (self.name, seen)
        expected = self.offline.run(self.model, np.concatenate([*before, tried]))[0][-len(tried) :]
        assert np.array_equal(as_array(seen, expected), expected), (self.name, seen)
        self.tally["peeks"] += 1

    async def fork(self) -> None:
        if not self.inputs:
            return
        self.num_forks += 1
        body = {"sequence_id": f"{self.name}-{self.num_forks}"}
        answers = await self.both(*(caller.call("POST", self.path + "/fork", body) for caller in self.callers))
        assert sorted(answer.status for answer in answers) == [201, CONFLICT], (self.name, answers)
        self.tally["one 201 and one 409"] += 1

    async def is_as_offline(self) -> None:
        expected, final = self.offline.run(self.model, np.concatenate(self.inputs))
        assert np.array_equal(np.concatenate(self.outputs), expected), self.name
        for caller in self.callers:
            answer = await caller.call("GET", self.path + "/state")
            assert answer.document["step"] == self.step
            for name, state in final.items():
                assert np.array_equal(np.array(answer.document["state"][name], np.float32), state), self.name
            self.tally["final states equal"] += 1

    async def delete_beside_a_step(self) -> None:
        stepped, deleted = await self.both(
            self.steps(0, self.draw(), self.step, start=False), self.callers[1].call("DELETE", self.path)
        )
        assert (stepped.status in (OK, GONE), deleted.status) == (True, 204), (self.name, stepped, deleted)
        for caller in self.callers:
            answer = await caller.call("GET", self.path + "/state")
            assert (answer.status, answer.document["reason"]) == (GONE, "deleted"), (self.name, answer)
        self.tally["ended"] += 1

    async def both(self, *calls: Awaitable[Answer]) -> list[Answer]:
        return list(await asyncio.gather(*calls))

    async def steps(self, n: int, inputs: Array, step: int | None, **fields: Any) -> Answer:
        named = {} if step is None else {"step": step}
        body = {"inputs": inputs.tolist(), "start": True, **named, **fields}
        return await self.callers[n].call("POST", self.path + "/steps", body)

    def accept(self, inputs: Array, answer: Answer, *, replayed: bool) -> None:
        assert answer.status == OK, (self.name, answer)
        assert answer.document["step"] == self.step + len(inputs), (self.name, self.step, answer)
        assert answer.document["replayed"] == replayed, (self.name, answer)
        self.inputs.append(inputs)
        outputs = np.array(answer.document["outputs"], np.float32)
        self.outputs.append(outputs)
        self.tally["calls"] += 1

    def draw(self, *, unlike: bool = False) -> Array:
        inputs = self.offline.inputs(self.model, self.chance.randint(1, 3))
        return inputs + 0.5 if unlike else inputs


def as_array(answer: Answer, like: Array) -> Array:
    return np.array(answer.document["outputs"], np.float32).reshape(like.shape)


async def test_of_two_at_once_one_is_first(
    redis: RedisServer, repository: Path, tmp_path: Path, full: bool, chance: random.Random, tally: Counter[str]
) -> None:
    rounds, offline = 100 if full else 6, Offline(repository, chance)
    # fewer rows than sequences: what the one has moved, the other may have to fetch
    one, other = (
        Replica(repository, redis.url, tmp_path / f"log{n}", CAROUSEL_MAX_RESIDENT_SEQUENCES=rows)
        for n, rows in enumerate(("0", "60"))
    )
    async with one, other:
        contests = []
        for n in range(SEQUENCES):
            callers, own = (Caller([one.port]), Caller([other.port])), random.Random(chance.getrandbits(32))
            contests.append(Contest((SUM, LSTM)[n % 2], f"s{n}", callers, offline, own, tally))
        try:
            async with asyncio.TaskGroup() as group:
                for contest in contests:
                    group.create_task(contest.run(rounds))
        finally:
            for caller in (caller for contest in contests for caller in contest.callers):
                await caller.close()
    for replica in (one, other):
        assert "Traceback" not in replica.log, replica.log[-4000:]
