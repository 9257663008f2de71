"""Replies are cut and the server is killed under its callers: each step is done once, and none is left out."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.torture.caller import Answer, Caller, Lost
from tests.torture.conftest import LSTM, SUM
from tests.torture.course import Course, Offline
from tests.torture.proxy import open_proxy
from tests.torture.replica import Replica

pytestmark = pytest.mark.anyio

CLIENTS, COURSES_EACH = 32, 4
STEPS_A_CALL = 3
LONG = 300
"""Steps of a call whose answer is too large to be kept as it is."""
RESIDENT = "70"
"""Of 128 sequences: they give up their rows and come back all the time."""
LATE_SECONDS = 0.01


@dataclass
class Client:
    """Steps its courses in turn, in all the ways there are, and tries again until it knows the answer."""

    callers: tuple[Caller, Caller]
    courses: list[Course]
    chance: random.Random
    tally: Counter[str]
    calls_left: int

    async def run(self) -> None:
        try:
            while self.calls_left > 0 and (under_way := [course for course in self.courses if course.steps_left]):
                course = self.chance.choice(under_way)
                ways = [self.step, self.twice, self.ahead, self.peek, self.read]
                await self.chance.choices(ways, [70, 8, 8, 8, 6])[0](course)
            for course in self.courses:
                while course.steps_left:
                    await self.step(course, LONG)
        finally:
            for caller in self.callers:
                await caller.close()

    async def step(self, course: Course, steps: int = 0) -> None:
        steps = min(steps, course.steps_left) or self.draw_steps(course)
        await self.until_answered(course, steps, course.step)
        course.step += steps

    async def twice(self, course: Course) -> None:
        """The same call on two connections at once."""
        steps = self.draw_steps(course)
        await asyncio.gather(*(self.until_answered(course, steps, course.step, caller) for caller in self.callers))
        course.step += steps

    async def ahead(self, course: Course) -> None:
        """The next call before the answer to this one is there."""
        steps = self.draw_steps(course)
        begin, more = course.step + steps, min(2, course.steps_left - steps)
        if not more:
            return
        now, later = self.callers
        await asyncio.gather(
            self.until_answered(course, steps, course.step, now),
            self.until_answered(course, more, begin, later, is_ahead=True),
        )
        course.step = begin + more

    async def peek(self, course: Course) -> None:
        if course.step:
            body = course.body(2, commit=False)
            answer = await self.call("POST", course.path + "/steps", body)
            assert answer.status == 200, answer
            assert course.is_answer(answer.document, min(2, course.steps_left)), (course.name, answer)

    async def read(self, course: Course) -> None:
        if course.step:
            answer = await self.call("GET", course.path + "/state")
            assert (answer.status, answer.document["step"]) == (200, course.step), (course.name, answer)

    async def until_answered(
        self, course: Course, steps: int, begin: int, caller: Caller | None = None, *, is_ahead: bool = False
    ) -> None:
        """One that is sent ahead may come before its turn: then it is told so, and sent again."""
        body = course.body(steps, begin, start=is_ahead or not begin)
        while True:
            answer = await self.call("POST", course.path + "/steps", body, caller)
            if answer.status == 200:
                break
            assert is_ahead, (course.name, begin, answer)
            assert (answer.status, answer.document["code"]) == (409, "step_conflict"), (course.name, begin, answer)
            assert answer.document["expected_step"] < begin, (course.name, begin, answer)
            self.tally["calls before their turn"] += 1
            await asyncio.sleep(0)
        assert course.is_answer(answer.document, steps, begin), (course.model, course.name, begin, steps, answer)
        self.tally["replayed"] += answer.document["replayed"]

    async def call(self, method: str, path: str, document: Any = None, caller: Caller | None = None) -> Answer:
        while True:
            try:
                answer = await (caller or self.callers[0]).call(method, path, document)
            except Lost:
                self.tally["calls lost"] += 1
                continue
            if answer.status != 503:
                self.tally["calls"] += 1
                self.calls_left -= 1
                return answer
            assert "retry-after" in answer.headers
            self.tally["refused"] += 1

    def draw_steps(self, course: Course) -> int:
        is_long = self.chance.random() < 0.02
        return min(course.steps_left, LONG if is_long else self.chance.randint(1, STEPS_A_CALL))


async def test_no_step_is_done_twice_or_left_out(
    durable: str, repository: Path, tmp_path: Path, full: bool, chance: random.Random, tally: Counter[str]
) -> None:
    num_calls, num_kills = (20_000, 110) if full else (800, 4)
    offline = Offline(repository, chance)
    steps = num_calls // (CLIENTS * COURSES_EACH) * 10 + LONG
    async with Replica(repository, durable, tmp_path / "log", CAROUSEL_MAX_RESIDENT_SEQUENCES=RESIDENT) as replica:
        async with open_proxy(replica.port, replica.is_up, chance, tally) as proxy, asyncio.TaskGroup() as group:
            clients = []
            for n in range(CLIENTS):
                courses = [offline.course((SUM, LSTM)[k % 2], f"c{n}-{k}", steps) for k in range(COURSES_EACH)]
                callers = Caller([proxy.port]), Caller([proxy.port])
                chance_of_it = random.Random(chance.getrandbits(32))
                clients.append(Client(callers, courses, chance_of_it, tally, num_calls // CLIENTS))
            running = [group.create_task(client.run()) for client in clients]
            while not all(task.done() for task in running):
                until = tally["calls"] + chance.randint(1, 2 * num_calls // num_kills)
                while tally["calls"] < until and not all(task.done() for task in running):  # noqa: ASYNC110
                    await asyncio.sleep(chance.random() * LATE_SECONDS)
                await kill(replica, tally)
        await kill(replica, tally)
        async with Caller([replica.port]) as caller:
            for course in (course for client in clients for course in client.courses):
                answer = await caller.call("GET", course.path + "/state")
                assert course.is_final(answer.document), (course.model, course.name, answer)
                tally["final states equal"] += 1
    assert "Traceback" not in replica.log, replica.log[-4000:]
    assert tally["replies cut"] >= 0.1 * tally["replies"]
    assert tally["calls"] >= num_calls
    assert tally["kills"] >= (100 if full else 4)


async def kill(replica: Replica, tally: Counter[str]) -> None:
    await replica.kill()
    tally["kills"] += 1
    await replica.start()
