"""A client that steps sequences in all the ways there are, and tries again until it knows the answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.torture.caller import Answer, Caller, Lost, Refused
from tests.torture.course import Course, Offline

COURSES, STEPS_A_CALL = 4, 3
LONG = 300
"""Steps of a call whose answer is too large to be kept as it is."""
SHORTEST, LONGEST = 60, 400
"""Steps of a course."""
PAUSE_SECONDS = 0.005
"""Before a call is sent again that was turned away."""

LOST, REFUSED, AWAY, DRAINING = "calls lost", "connections refused", "503 store_unavailable", "503 draining"
"""What may happen to a call."""


@dataclass
class Client:
    """`callers` are two, for calls at once; `may_happen` says what it takes without complaint."""

    name: str
    callers: tuple[Caller, Caller]
    offline: Offline
    models: tuple[str, ...]
    chance: random.Random
    tally: Counter[str]
    may_happen: frozenset[str]
    courses: list[Course] = field(default_factory=list)
    """Under way, and those that are done after them."""
    num_begun: int = 0

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Until `is_over`, then to the end of each course."""
        under_way = [self.begin() for _ in range(COURSES)]
        ways = [self.step, self.twice, self.ahead, self.infer, self.peek, self.read]
        try:
            while not is_over():
                place = self.chance.randrange(COURSES)
                if not under_way[place].steps_left:
                    under_way[place] = self.begin()
                await self.chance.choices(ways, [60, 8, 8, 10, 8, 6])[0](under_way[place])
            for course in under_way:
                while course.steps_left:
                    await self.step(course, LONG)
        finally:
            for caller in self.callers:
                await caller.close()

    def begin(self) -> Course:
        self.num_begun += 1
        model = self.models[self.num_begun % len(self.models)]
        steps = self.chance.randint(SHORTEST, LONGEST)
        self.courses.append(self.offline.course(model, f"{self.name}-{self.num_begun}", steps))
        return self.courses[-1]

    # -- ways --------------------------------------------------------------------------------------------------------

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

    async def infer(self, course: Course) -> None:
        """By the other door, the Open Inference Protocol."""
        steps = self.draw_steps(course)
        answer = await self.call("POST", f"/v2/models/{course.model}/infer", course.infer_body(steps))
        assert answer.status == 200, (course.name, course.step, answer)
        told, (outputs,) = answer.document["parameters"], answer.document["outputs"]
        document = {"step": told["sequence_step"], "outputs": outputs["data"]}
        assert course.is_answer(document, steps), (course.model, course.name, course.step, steps, answer)
        course.step += steps
        self.tally["replayed"] += told["sequence_replayed"]

    async def peek(self, course: Course) -> None:
        if course.step:
            answer = await self.call("POST", course.path + "/steps", course.body(2, commit=False))
            assert answer.status == 200, (course.name, answer)
            assert course.is_answer(answer.document, min(2, course.steps_left)), (course.name, course.step, answer)

    async def read(self, course: Course) -> None:
        if course.step:
            answer = await self.call("GET", course.path + "/state")
            assert (answer.status, answer.document["step"]) == (200, course.step), (course.name, answer)

    # -- calls -------------------------------------------------------------------------------------------------------

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
        caller = caller or self.callers[0]
        while True:
            try:
                answer = await caller.call(method, path, document)
            except Lost:
                happened = LOST
            except Refused:
                happened = REFUSED
            else:
                if answer.status != 503:
                    self.tally["calls"] += 1
                    return answer
                assert "retry-after" in answer.headers
                happened = f"503 {answer.document['code']}"
                await caller.turn_away()
            assert happened in self.may_happen, (happened, method, path)
            self.tally[happened] += 1
            await asyncio.sleep(0 if happened == LOST else PAUSE_SECONDS)

    def draw_steps(self, course: Course) -> int:
        is_long = self.chance.random() < 0.02
        return min(course.steps_left, LONG if is_long else self.chance.randint(1, STEPS_A_CALL))


async def check_ends(caller: Caller, clients: Iterable[Client], tally: Counter[str]) -> None:
    """Every sequence stands at its end, with the state of the offline run to the last bit."""
    for course in (course for client in clients for course in client.courses):
        answer = await caller.call("GET", course.path + "/state")
        assert course.is_final(answer.document), (course.model, course.name, answer)
        tally["final states equal"] += 1
