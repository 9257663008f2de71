"""Every call of both clients, against a real server."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from carousel_client import (
    InvalidInput,
    InvalidState,
    SequenceExists,
    SequenceGone,
    SequenceNotFound,
    StateMoved,
    StepConflict,
    TooLarge,
    Unauthenticated,
)
from carousel_client.errors import DeadlineExceeded, ModelNotFound, NotFound, VersionNotFound
from tests.client.conftest import KEY, OTHER_KEY
from tests.client.twins import client_of, entered, got, listed
from tests.service.api.clients import BROKEN, LSTM, SUM, TOKENS
from tests.service.api.processes import Served

pytestmark = pytest.mark.anyio

ONE, TWO = [[1.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]]


async def test_models_are_listed_with_the_reason_why_one_is_not_ready(client: Any) -> None:
    lines = {line.name: line for line in await got(client.models())}
    assert (lines[SUM].version, lines[SUM].versions, lines[SUM].ready, lines[SUM].cell) == (1, (1,), True, "sum")
    assert not lines[BROKEN].ready
    assert lines[BROKEN].reason


async def test_a_card_tells_shapes_and_vocabulary(client: Any) -> None:
    card = await got(client.model(LSTM).card())
    assert [(state.name, state.step_shape) for state in card.states] == [("h", (2, 8)), ("c", (2, 8))]
    assert (card.inputs[0].step_shape, card.outputs[0].step_shape) == ((3,), (2,))
    tokens = await got(client.model(TOKENS, version=1).card())
    assert (tokens.inputs[0].vocabulary, tokens.inputs[0].step_shape) == (tuple("abcde"), ())
    with pytest.raises(VersionNotFound):
        await got(client.model(TOKENS, version=7).card())
    with pytest.raises(ModelNotFound):
        await got(client.model("none").card())
    with pytest.raises(NotFound):
        await got(client.model("../no/such?model").card())


async def test_a_prediction_goes_on_from_a_state_or_a_token_bit_for_bit(client: Any) -> None:
    model, x = client.model(LSTM), np.random.default_rng(0).normal(size=(9, 3))
    whole = await got(model.predict(x))
    first = await got(model.predict(x[:4]))
    by_state = await got(model.predict(x[4:], initial_state=first.final_state))
    by_token = await got(model.predict(x[4:], state_token=first.state_token))
    assert (whole.outputs.shape, whole.outputs.dtype, whole.steps) == ((9, 2), np.float32, 9)
    for rest in (by_state, by_token):
        assert np.array_equal(np.concatenate([first.outputs, rest.outputs]), whole.outputs)
        assert np.array_equal(rest.final_state["c"], whole.final_state["c"])


async def test_many_sequences_of_any_lengths_are_predicted_at_once(client: Any) -> None:
    model = client.model(SUM)
    states = [None, {"h": [[10.0, 10.0]]}]
    found = await got(model.predict([np.array(TWO), np.array(ONE)], initial_state=states, outputs="last"))
    assert [prediction.outputs.tolist() for prediction in found] == [[[4, 6]], [[11, 10]]]
    bare = await got(model.predict(np.array(TWO), outputs="none", return_state=False))
    assert (bare.outputs.size, bare.final_state, bare.state_token, bare.steps) == (0, None, None, 2)
    with pytest.raises(InvalidState, match="list of 2"):
        await got(model.predict([np.array(TWO), np.array(ONE)], initial_state=states[1]))


async def test_a_sequence_counts_its_steps_and_is_gone_after_its_block(client: Any) -> None:
    model = client.model(SUM)
    async with entered(model.sequence(ttl=60)) as s:
        assert s.position == 0
        stepped = await got(s.step(np.array(TWO)))
        assert (stepped.outputs.tolist(), stepped.step, s.position) == ([[1, 2], [4, 6]], 2, 2)
        assert 50 < (s.expires_at - datetime.now(UTC)).total_seconds() <= 60
        scored = await got(s.step(ONE, commit=False, return_state=True, outputs="last"))
        assert (scored.outputs.tolist(), scored.final_state["h"].tolist(), s.position) == ([[5, 6]], [[5, 6]], 2)
        assert (await got(s.step(ONE))).outputs.tolist() == [[5, 6]]
    with pytest.raises(SequenceGone) as caught:
        await got(s.step(ONE))
    assert caught.value.reason == "deleted"


async def test_a_kept_sequence_is_gone_on_with_by_its_id(client: Any, kind: str) -> None:
    model = client.model(SUM)
    async with entered(model.sequence(f"kept-{kind}", keep=True)) as s:
        await got(s.step(TWO))
    async with entered(model.sequence(f"kept-{kind}")) as s:
        assert s.position == 2
        assert (await got(s.step(ONE))).outputs.tolist() == [[5, 6]]
    async with entered(model.sequence(f"kept-{kind}")) as s:
        assert s.position == 0, "it was deleted, so it begins anew"


async def test_the_error_of_a_block_is_not_hidden_by_leaving_it(client: Any) -> None:
    async def fail() -> None:
        async with entered(client.model(SUM).sequence()) as s:
            await got(s.delete())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


async def test_state_is_read_and_set(client: Any) -> None:
    async with entered(client.model(SUM).sequence(initial_state={"h": [[1, 1]]})) as s:
        await got(s.step(ONE))
        assert (await got(s.state))["h"].tolist() == [[2, 1]]
        await got(s.write_state({"h": [[7, 7]]}))
        assert (s.position, (await got(s.step(ONE))).outputs.tolist()) == (1, [[8, 7]])
        await got(s.write_state({"h": np.zeros((1, 2))}, step=50))
        assert (s.position, (await got(s.step(ONE))).step) == (50, 51)


def test_state_can_be_assigned(served: Served) -> None:
    with client_of("sync", served.address, api_key=KEY) as client, client.model(SUM).sequence() as s:
        s.state = {"h": [[7, 7]]}
        assert s.state["h"].tolist() == [[7, 7]]


async def test_a_token_carries_a_state_to_other_sequences(client: Any) -> None:
    model = client.model(SUM)
    async with entered(model.sequence()) as s:
        await got(s.step(TWO))
        token = await got(s.token())
        await got(s.step(ONE))
        await got(s.write_state(token))
        assert (s.position, (await got(s.state))["h"].tolist()) == (2, [[4, 6]])
    async with entered(model.sequence(state_token=token)) as s:
        assert (s.position, (await got(s.step(ONE))).outputs.tolist()) == (2, [[5, 6]])
    with pytest.raises(InvalidState) as caught:
        await got(model.predict(ONE, state_token=token[:-8] + "AAAAAAAA"))
    assert caught.value.reason == "tampered"


async def test_a_fork_goes_its_own_way(client: Any, kind: str) -> None:
    async with entered(client.model(SUM).sequence()) as s:
        await got(s.step(TWO))
        async with entered(await got(s.fork(f"fork-{kind}"))) as fork:
            await got(fork.step(ONE))
            assert (fork.id, fork.position, s.position) == (f"fork-{kind}", 3, 2)
            with pytest.raises(SequenceExists):
                await got(s.fork(f"fork-{kind}"))
        other = await got(s.fork())
        assert (other.position, (await got(other.state))["h"].tolist()) == (2, [[4, 6]])
        await got(other.delete())


async def test_sequences_are_listed_and_belong_to_their_key(client: Any, served: Served, kind: str) -> None:
    async with (
        entered(client.model(TOKENS).sequence(f"listed-{kind}")) as s,
        entered(client_of(kind, served.address, api_key=OTHER_KEY)) as other,
    ):
        await got(s.step([0, 1, 2]))
        found = {line.sequence_id: line.step for line in await got(client.model(TOKENS).sequences())}
        assert found[f"listed-{kind}"] == 3
        assert await got(other.model(TOKENS).sequences()) == []
        with pytest.raises(SequenceNotFound):
            await got(other.model(TOKENS).sequence(f"listed-{kind}").refresh())


async def test_a_sequence_that_somebody_else_moved_says_where_it_stands(client: Any, kind: str) -> None:
    model = client.model(SUM)
    async with entered(model.sequence()) as s:
        await got(model.sequence(s.id, keep=True).step(TWO))
        with pytest.raises(StepConflict) as caught:
            await got(s.step([[9, 9]]))
        assert (caught.value.expected_step, caught.value.received) == (2, 0)
        with pytest.raises(StateMoved):
            await got(s.write_state({"h": [[0, 0]]}))
        assert await got(s.refresh()) == 2
        assert (await got(s.step(ONE))).outputs.tolist() == [[5, 6]]


async def test_calls_of_one_sequence_at_once_run_one_after_another(client: Any, kind: str) -> None:
    async with entered(client.model(SUM).sequence()) as s:
        if kind == "async":
            await asyncio.gather(*(s.step(ONE) for _ in range(20)))
        else:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: s.step(ONE), range(20)))
        assert (s.position, (await got(s.state))["h"].tolist()) == (20, [[20, 0]])


@pytest.mark.parametrize(
    ("inputs", "place"),
    [
        ([[1, 2], [3, float("nan")]], "inputs[1][1]"),
        (np.array([[np.inf, 0]]), "inputs[0][0]"),
        ([[1e39, 0.0]], "inputs[0][0]"),
        ([[1], [2, 3]], "inputs"),
        (["a"], "inputs"),
        (3.0, "inputs"),
    ],
    ids=["nan", "infinity", "beyond float32", "ragged", "text", "one number"],
)
async def test_what_is_no_array_of_finite_numbers_is_not_sent(kind: str, inputs: Any, place: str) -> None:
    async with entered(client_of(kind, "http://127.0.0.1:9")) as nowhere:
        with pytest.raises(InvalidInput) as caught:
            await got(nowhere.model(SUM).sequence().step(inputs))
        assert (caught.value.place, caught.value.status) == (place, None)
        with pytest.raises(InvalidInput) as caught:
            await got(nowhere.model(SUM).predict(inputs))
        assert caught.value.place == f"sequences[0].{place}"


async def test_errors_have_the_fields_of_the_problem(client: Any, served: Served, kind: str) -> None:
    model = client.model(SUM)
    with pytest.raises(InvalidInput) as caught:
        await got(model.predict([np.array(ONE), np.array([[1.0, 2.0, 3.0]])]))
    assert (caught.value.index, caught.value.expected, caught.value.received) == (1, ["steps", 2], [1, 3])
    assert (caught.value.status, caught.value.code) == (422, "invalid_input")
    with pytest.raises(TooLarge) as large:
        await got(model.predict([np.array(ONE)] * 9))
    assert (large.value.limit, large.value.limit_name, large.value.received) == (8, "sequences", 9)
    with pytest.raises(InvalidInput, match="sequence_id"):
        model.sequence("..")
    async with entered(client_of(kind, served.address, api_key="no such key")) as stranger:
        with pytest.raises(Unauthenticated):
            await got(stranger.models())
    async with entered(client_of(kind, served.address + "/nothing/here", api_key=KEY)) as lost:
        with pytest.raises(NotFound):
            await got(lost.models())


async def test_a_deadline_that_passed_is_told_and_not_tried_again(served: Served, kind: str) -> None:
    options = {"api_key": KEY, "deadline": 0.001}
    long = np.ones((90_000, 3))
    async with entered(client_of(kind, served.address, **options)) as hasty:
        with pytest.raises(DeadlineExceeded):
            await got(hasty.model(LSTM).predict(long, outputs="none"))


async def test_steps_of_a_generation_come_as_events_and_make_up_its_result(client: Any) -> None:
    model = client.model(TOKENS)
    options = {"seed": 3, "outputs": "all"}
    generation = model.generate("abc", 7, **options)
    steps = await listed(generation)
    streamed, whole = await got(generation.result()), await got(model.generate("abc", 7, **options).result())
    assert [step.number for step in steps] == list(range(1, 8))
    assert "".join(step.text for step in steps) == streamed.text == whole.text == await got(generation.text())
    assert streamed.tokens.tolist() == whole.tokens.tolist() == [step.token for step in steps]
    assert np.array_equal(streamed.outputs, whole.outputs)
    assert streamed.final_state["h"].tolist() == whole.final_state["h"].tolist()
    after = await got(model.generate("a", 1, state_token=streamed.state_token).result())
    assert after.step == 3 + 7 + 2


async def test_a_forecast_begins_where_its_state_says_and_takes_what_is_known_ahead(client: Any) -> None:
    model = client.model(SUM)
    generation = model.generate(ONE, 3, initial_state={"h": [[1, 1]]})
    steps = await listed(generation)
    assert [step.value.tolist() for step in steps] == [[2, 0], [4, 0], [8, 0]]
    result = await got(generation.result())
    assert (result.values.tolist(), result.text) == ([[2, 0], [4, 0], [8, 0]], None)
    with pytest.raises(InvalidInput) as caught:
        await got(model.generate(ONE, 2, future_inputs={"y": [1.0, np.nan]}).result())
    assert caught.value.place == "future_inputs.y[1]"


async def test_a_sequence_moves_by_what_it_generated_or_stays(client: Any) -> None:
    async with entered(client.model(TOKENS).sequence()) as s:
        await got(s.step([0]))
        tried = await got(s.generate("bc", 5, commit=False, seed=1).text())
        assert s.position == 1
        made = s.generate("bc", 5, seed=1)
        assert "".join(step.text for step in await listed(made)) == tried
        assert s.position == (await got(made.result())).step == 8
        assert (await got(s.state))["h"].sum() == 8


async def test_a_generation_that_is_left_is_over_and_the_sequence_stands_where_it_stood(client: Any) -> None:
    async with entered(client.model(TOKENS).sequence()) as s:
        async with entered(s.generate("a", 90_000)) as generation:
            if hasattr(generation, "__aiter__"):
                async for _ in generation:
                    break
            else:
                for _ in generation:
                    break
        assert (await got(s.refresh()), (await got(s.step([0]))).step) == (0, 1)
