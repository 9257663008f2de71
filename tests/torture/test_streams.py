"""The server is killed under streams that send ahead; they send again what was not answered. Each step is done once."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage

from tests.torture.caller import Caller
from tests.torture.conftest import LSTM, SUM
from tests.torture.course import Course, Offline
from tests.torture.replica import Replica

pytestmark = pytest.mark.anyio

STREAMS, SEQUENCES, STEPS, AHEAD = 8, 16, 2, 3
"""Streams, sequences on each, steps of a record, records of a sequence under way at once."""


async def run_stream(replica: Replica, courses: list[Course], tally: Counter[str]) -> None:
    """Until all courses are at their ends, over as many connections as it takes."""
    while any(course.steps_left for course in courses):
        await replica.is_up.wait()
        try:
            async with connect(f"ws://127.0.0.1:{replica.port}/v1/models/{courses[0].model}/stream") as stream:
                await step_all(stream, {course.name: course for course in courses}, tally)
        except (ConnectionClosed, InvalidMessage, OSError, EOFError):
            tally["streams lost"] += 1


async def step_all(stream: ClientConnection, courses: dict[str, Course], tally: Counter[str]) -> None:
    for ahead in range(AHEAD):
        for course in courses.values():
            await send(stream, course, course.step + ahead * STEPS)
    while any(course.steps_left for course in courses.values()):
        answer = json.loads(await stream.recv())
        assert "error" not in answer, answer
        course = courses[answer["sequence_id"]]
        steps = min(STEPS, course.steps_left)
        assert course.is_answer(answer, steps), (course.name, course.step, answer)
        course.step += steps
        tally["records"] += 1
        tally["replayed"] += answer["replayed"]
        await send(stream, course, course.step + (AHEAD - 1) * STEPS)


async def send(stream: ClientConnection, course: Course, begin: int) -> None:
    if begin < len(course.inputs):
        body = course.body(STEPS, begin, start=begin == 0)
        await stream.send(json.dumps({"sequence_id": course.name, **body}))


async def test_streams_go_on_after_kills(
    durable: str, repository: Path, tmp_path: Path, full: bool, chance: random.Random, tally: Counter[str]
) -> None:
    steps, num_kills = (400, 30) if full else (24, 2)
    offline = Offline(repository, chance)
    settings = {"CAROUSEL_MAX_RESIDENT_SEQUENCES": "70"}
    async with Replica(repository, durable, tmp_path / "log", **settings) as replica:
        async with asyncio.TaskGroup() as group:
            courses = [
                [offline.course((SUM, LSTM)[n % 2], f"s{n}-{k}", steps) for k in range(SEQUENCES)]
                for n in range(STREAMS)
            ]
            running = [group.create_task(run_stream(replica, each, tally)) for each in courses]
            num_records = STREAMS * SEQUENCES * steps // STEPS
            for _ in range(num_kills):
                until = tally["records"] + chance.randint(1, num_records // num_kills)
                while tally["records"] < until and not all(task.done() for task in running):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                await replica.kill()
                tally["kills"] += 1
                await replica.start()
        async with Caller([replica.port]) as caller:
            for course in (course for each in courses for course in each):
                answer = await caller.call("GET", course.path + "/state")
                assert course.is_final(answer.document), (course.model, course.name, answer)
                tally["final states equal"] += 1
    assert "Traceback" not in replica.log, replica.log[-4000:]
