"""What is sent again, when, and what is not. Time is the test's: nothing here waits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from carousel_client import CarouselError, Client, ConnectionFailed, RateLimited, Retry, SequenceExists, Unavailable
from carousel_client.errors import DeadlineExceeded
from tests.client.sockets import Script, answer, running
from tests.client.twins import Clock, client_of, entered, got, listed

pytestmark = pytest.mark.anyio

MODELS = answer(200, '{"models": []}')
POSITION = json.dumps(
    {"sequence_id": "s", "model": "m", "version": 1, "step": 4, "expires_at": "2026-11-23T12:00:00.000Z"}
)
STEPPED = json.dumps(
    {"sequence_id": "s", "step": 5, "outputs": [[1]], "expires_at": "2026-11-23T12:00:00.000Z", "replayed": False}
)


def problem(status: int, code: str, *headers: str) -> bytes:
    return answer(status, json.dumps({"code": code, "status": status, "detail": code}), *headers)


@asynccontextmanager
async def scripted(
    kind: str, answers: list[bytes | None], draw: float = 0.5, **options: Any
) -> AsyncIterator[tuple[Any, Script, Clock]]:
    """A client whose back-off always draws this part of the longest wait."""
    script, clock = Script(answers), Clock(kind)
    pace = {"clock": clock.now, "sleep": clock.sleep, "random": lambda: draw}
    with running(script) as address:
        async with entered(client_of(kind, address, **pace, **options)) as client:
            yield client, script, clock


@pytest.mark.parametrize("refusal", [problem(503, "draining", "Retry-After: 7"), answer(429, "", "Retry-After: 7")])
async def test_retry_after_is_honoured(kind: str, refusal: bytes) -> None:
    async with scripted(kind, [refusal, refusal, MODELS]) as (client, script, clock):
        assert await got(client.models()) == []
    assert len(script.requests) == 3
    assert clock.slept == [7 + 0.05, 7 + 0.1]


async def test_a_wait_beyond_the_time_for_all_attempts_is_not_begun(kind: str) -> None:
    async with scripted(kind, [answer(429, "", "Retry-After: 61")]) as (client, script, clock):
        with pytest.raises(RateLimited) as caught:
            await got(client.models())
    assert (caught.value.retry_after, clock.slept, len(script.requests)) == (61, [], 1)


async def test_waits_grow_twofold_to_a_bound_and_end_in_time(kind: str) -> None:
    retry = Retry(first_seconds=1, max_seconds=8, total_seconds=40)
    async with scripted(kind, [None] * 9, draw=1.0, retry=retry) as (client, script, clock):
        with pytest.raises(ConnectionFailed):
            await got(client.models())
    assert clock.slept == [1, 2, 4, 8, 8, 8, 8]
    assert len(script.requests) == 8


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.999])
async def test_each_wait_is_drawn_from_nothing_up_to_all_of_it(kind: str, draw: float) -> None:
    retry = Retry(first_seconds=1, max_seconds=8)
    async with scripted(kind, [None, None, MODELS], draw=draw, retry=retry) as (client, _, clock):
        await got(client.models())
    assert clock.slept == [draw, 2 * draw]


async def test_a_client_may_be_told_never_to_try_again(kind: str) -> None:
    async with scripted(kind, [None, MODELS], retry=Retry(total_seconds=0)) as (client, script, _):
        with pytest.raises(ConnectionFailed):
            await got(client.models())
    assert len(script.requests) == 1


@pytest.mark.parametrize(("status", "code"), [(504, "deadline_exceeded"), (500, "engine_failure"), (422, "other")])
async def test_other_failures_are_final(kind: str, status: int, code: str) -> None:
    async with scripted(kind, [problem(status, code), MODELS]) as (client, script, _):
        with pytest.raises(CarouselError):
            await got(client.models())
    assert len(script.requests) == 1


async def test_504_is_tried_again_where_that_is_asked_for(kind: str) -> None:
    failure, statuses = problem(504, "deadline_exceeded"), frozenset({504})
    async with scripted(kind, [failure, MODELS], retry=Retry(statuses=statuses)) as (client, _, _):
        assert await got(client.models()) == []
    async with scripted(kind, [failure, MODELS]) as (client, _, _):
        with pytest.raises(DeadlineExceeded):
            await got(client.models())


async def test_a_numbered_step_is_sent_again_as_it_was(kind: str) -> None:
    busy = problem(503, "queue_full", "Retry-After: 1")
    async with scripted(kind, [answer(200, POSITION), None, busy, answer(200, STEPPED)]) as (client, script, _):
        stepped = await got(client.model("m").sequence("s").step([[1.0]]))
    assert (stepped.step, len(script.requests)) == (5, 4)
    sent = [request.partition(b"\r\n\r\n")[2] for request in script.requests[1:]]
    assert json.loads(sent[0])["step"] == 4
    assert len(set(sent)) == 1


async def test_a_rollout_that_moves_its_sequence_is_sent_again_with_the_seed_that_it_had(kind: str) -> None:
    made = {"sequence_id": "s", "expires_at": "2026-11-23T12:00:00.000Z", "replayed": True, "step": 7, "steps": 2}
    made |= {"tokens": [1, 2], "text": "bc", "finish_reason": "steps", "seed": 3, "outputs": []}
    async with scripted(kind, [answer(200, POSITION), None, answer(200, json.dumps(made))]) as (client, script, _):
        assert await got(client.model("m").sequence("s").generate("a", 2).text()) == "bc"
    sent = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in script.requests[1:]]
    assert sent[0] == sent[1]
    assert (sent[0]["step"], type(sent[0]["seed"])) == (4, int)


async def test_a_fork_to_an_id_of_the_callers_is_sent_once(kind: str) -> None:
    async with scripted(kind, [answer(200, POSITION), None, None]) as (client, script, _):
        with pytest.raises(ConnectionFailed):
            await got(client.model("m").sequence("s").fork("copy"))
    assert len(script.requests) == 2
    # a balancer's 503 may hide an answer that was lost
    async with scripted(kind, [answer(200, POSITION), problem(503, "draining"), None]) as (client, script, _):
        with pytest.raises(Unavailable):
            await got(client.model("m").sequence("s").fork("copy"))
    assert len(script.requests) == 2


async def test_a_fork_or_a_sequence_whose_answer_was_lost_is_found(kind: str) -> None:
    """Their ids were made up by the client, so nobody else has made them."""
    taken, there = problem(409, "sequence_exists"), answer(200, POSITION)
    async with scripted(kind, [None, taken, there, None, taken, there]) as (client, script, _):
        sequence = client.model("m").sequence()
        fork = await got(sequence.fork())
    methods = [request.split()[0] for request in script.requests]
    assert methods == [b"POST", b"POST", b"GET"] * 2
    assert (sequence.position, fork.position) == (4, 4)
    async with scripted(kind, [there, taken]) as (client, _, _):
        with pytest.raises(SequenceExists):
            await got(client.model("m").sequence("s").fork("copy"))


async def test_setting_a_state_is_sent_again_only_where_it_cannot_meet_itself(kind: str) -> None:
    there = answer(200, POSITION)
    async with scripted(kind, [there, None, there]) as (client, script, _):
        await got(client.model("m").sequence("s").write_state({"h": [[1]]}))
    assert b'if-match: "4"' in script.requests[-1].lower()
    async with scripted(kind, [there, None, there]) as (client, script, _):
        with pytest.raises(ConnectionFailed):
            await got(client.model("m").sequence("s").write_state({"h": [[1]]}, step=9))


async def test_a_deletion_that_was_done_already_is_no_error(kind: str) -> None:
    gone = answer(410, '{"code": "sequence_gone", "status": 410, "detail": "", "reason": "deleted"}')
    async with scripted(kind, [None, gone]) as (client, script, _):
        await got(client.model("m").sequence("s").delete())
    assert len(script.requests) == 2


async def test_events_that_break_off_are_told(kind: str) -> None:
    step = 'event: step\ndata: {"step": 2, "number": 1, "token": 3, "text": "d"}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
    whole, cut = head + b"\r\n" + step.encode(), head + b"Content-Length: 999\r\n\r\n" + step.encode()
    for broken in (whole, cut):
        async with scripted(kind, [None, broken]) as (client, script, _):
            with pytest.raises(ConnectionFailed):
                await listed(client.model("m").generate("a", 5))
        assert len(script.requests) == 2, "before the first event nothing is lost, so it was sent again"


async def test_an_error_among_events_is_raised_as_itself(kind: str) -> None:
    events = 'event: error\ndata: {"code": "queue_full", "status": 503, "detail": "full"}\n\n'
    async with scripted(kind, [answer(200, events)]) as (client, _, _):
        with pytest.raises(Unavailable, match="full"):
            await listed(client.model("m").generate("a", 5))


def test_a_server_that_is_not_there_is_no_mystery() -> None:
    with (
        Client("http://127.0.0.1:9", retry=Retry(total_seconds=0)) as client,
        pytest.raises(ConnectionFailed) as caught,
    ):
        client.models()
    assert caught.value.__cause__ is not None
