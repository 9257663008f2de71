"""Many sequences on one WebSocket."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from carousel_client import ConnectionFailed, InvalidInput, NotFound, Retry, StepConflict, TooLarge, Unauthenticated
from carousel_client.errors import NonFiniteResult, NotStreamable, OutOfTurn
from tests.client.twins import client_of, entered, got
from tests.service.api.clients import BIDIR, LSTM, SUM, TOKENS
from tests.service.api.processes import Served

pytestmark = pytest.mark.anyio


async def result(pending: Any) -> Any:
    return await pending if asyncio.isfuture(pending) else pending.result()


async def test_steps_of_many_sequences_are_answered_each_in_its_order(client: Any, kind: str) -> None:
    async with entered(client.model(SUM).stream()) as stream:
        ids = [f"many-{kind}-{n}" for n in range(300)]
        sent = {id: [await got(stream.send(id, [[n, 1]])) for n in range(20)] for id in ids}
        for answers in sent.values():
            for step, pending in enumerate(answers, 1):
                stepped = await result(pending)
                assert (stepped.step, stepped.outputs.tolist()) == (step, [[step * (step - 1) / 2, step]])


async def test_chunks_give_bit_for_bit_what_http_gives(client: Any, kind: str) -> None:
    model, x = client.model(LSTM), np.random.default_rng(0).normal(size=(12, 3))
    async with entered(model.stream()) as stream:
        pending = [await got(stream.send(f"bits-{kind}", part)) for part in (x[:5], x[5:6], x[6:])]
        outputs = [(await result(answer)).outputs for answer in pending]
        last = await got(stream.step(f"bits2-{kind}", x, outputs="last", return_state=True))
    whole = await got(model.predict(x))
    assert np.array_equal(np.concatenate(outputs), whole.outputs)
    assert np.array_equal(last.outputs, whole.outputs[-1:])
    assert np.array_equal(last.final_state["c"], whole.final_state["c"])


async def test_a_stream_and_a_sequence_go_on_from_each_other(client: Any, kind: str) -> None:
    model = client.model(TOKENS)
    async with entered(model.sequence(f"both-{kind}")) as s, entered(model.stream()) as stream:
        await got(s.step([0, 1]))
        assert (await got(stream.step(s.id, [1]))).outputs.tolist() == [[1, 2, 0, 0, 0]]
        assert stream.position(s.id) == 3
        assert await got(s.refresh()) == 3
        await got(s.step([4]))
        with pytest.raises(StepConflict) as caught:
            await got(stream.step(s.id, [1]))
        assert caught.value.expected_step == 4


async def test_scored_steps_move_nothing_and_a_deleted_sequence_begins_anew(client: Any, kind: str) -> None:
    id = f"scored-{kind}"
    async with entered(client.model(SUM).stream()) as stream:
        steps = [await got(stream.send(id, [[n, 1]], commit=n % 2 == 0)) for n in (2, 1, 4, 3)]
        assert [(await result(pending)).outputs.tolist() for pending in steps] == [
            [[2, 1]],
            [[3, 2]],
            [[6, 2]],
            [[9, 3]],
        ]
        await got(stream.delete(id))
        assert (await got(stream.step(id, [[1, 1]]))).step == 1
        await got(stream.delete(id))
        with pytest.raises(NotFound):
            await got(stream.delete(f"never-{kind}"))


async def test_what_follows_a_step_that_failed_is_not_run(client: Any, kind: str) -> None:
    id = f"failing-{kind}"
    async with entered(client.model(SUM).stream()) as stream:
        big = [[3e38, 0]]
        steps = [await got(stream.send(id, x)) for x in ([[1, 1]], big, big, [[1, 1]], [[1, 1]])]
        steps += [await got(stream.send(id, [[1, 1]])) for _ in range(30)]
        await result(steps[0])
        await result(steps[1])
        with pytest.raises(NonFiniteResult):
            await result(steps[2])
        for pending in steps[3:]:
            with pytest.raises(OutOfTurn):
                await result(pending)
        assert (await got(stream.step(id, [[-3e38, 0]]))).step == 3


async def test_what_does_not_fit_is_not_sent(client: Any, kind: str) -> None:
    async with entered(client.model(SUM).stream()) as stream, entered(client.model(TOKENS).stream()) as tokens:
        for inputs in ([[1, 2, 3]], [1, 2], np.zeros((0, 2)), [[1, np.nan]], np.zeros((70_000, 2))):
            with pytest.raises(InvalidInput) as caught:
                await got(stream.send(f"misfit-{kind}", inputs))
            assert caught.value.status is None
        with pytest.raises(InvalidInput, match="token ids"):
            await got(tokens.send(f"misfit-{kind}", [0.5]))
        with pytest.raises(InvalidInput, match="sequence_id"):
            await got(stream.send("a b", [[1, 2]]))
        with pytest.raises(InvalidInput, match="no such token"):
            await got(tokens.step(f"misfit-{kind}", [99]))


async def test_a_message_that_the_server_finds_too_long_is_no_endless_retry(client: Any, kind: str) -> None:
    async with entered(client.model(LSTM).stream()) as stream:
        with pytest.raises(TooLarge):
            await got(stream.step(f"long-{kind}", np.ones((65_000, 3)), outputs="none"))
        assert (await got(stream.step(f"long-{kind}", np.ones((5, 3)), outputs="none"))).step == 5


async def test_who_may_not_open_a_stream_is_told_why(client: Any, served: Served, kind: str) -> None:
    with pytest.raises(NotStreamable):
        async with entered(client.model(BIDIR).stream()) as stream:
            await got(stream.step("s", [[1, 2, 3]]))
    async with entered(client_of(kind, served.address, api_key="no such key", retry=Retry(total_seconds=0))) as other:
        with pytest.raises(Unauthenticated):
            async with entered(other.model(SUM).stream()) as stream:
                await got(stream.step("s", [[1, 2]]))


async def test_closing_tells_whoever_still_waits_and_using_it_again_opens_it(client: Any, kind: str) -> None:
    id = f"closing-{kind}"
    async with entered(client.model(SUM).stream()) as stream:
        await got(stream.step(id, [[1, 1]]))
        pending = await got(stream.send(id, [[1, 1]]))
        await got(stream.close())
        with pytest.raises(ConnectionFailed):
            await result(pending)
        again = await got(stream.step(id, [[1, 1]]))
        assert (again.step, again.outputs.tolist()) == (2, [[2, 2]]), "the same step: run now, or replayed"
