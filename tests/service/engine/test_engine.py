"""What the engine promises: exact states, rows that do not see each other, failures that change nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.engine.engine import Engine
from service.engine.model_runner import ModelRunner
from service.engine.request import Request, Result
from service.errors import Draining, EngineFailure, NonFiniteResult, NoRoom, OutOfTurn, QueueFull
from tests.service.engine.engines import INLINE, THREADED, running_engine, standing, steps

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("either_arena")]


@pytest.mark.parametrize("seconds_a_run", [INLINE, THREADED], ids=["inline", "threaded"])
async def test_a_sequence_goes_on_where_it_stood(sums: Path, seconds_a_run: float):
    async with running_engine(sums, seconds_a_run=seconds_a_run) as engine:
        slot = engine.open()
        first = await engine.infer(slot, steps(1, 2, 3))
        second = await engine.infer(slot, steps(*range(13)), return_state=True)
        assert first.outputs.ravel().tolist() == [1, 3, 6]
        assert second.outputs.ravel().tolist() == (6 + np.cumsum(range(13))).tolist()
        assert second.state is not None
        assert second.state[0].tolist() == [[84]]


@pytest.mark.parametrize(("outputs", "expected"), [("all", [1, 3, 6]), ("last", [6]), ("none", [])])
async def test_only_the_outputs_asked_for_come_back(sums: Path, outputs: Any, expected: list[int]):
    async with running_engine(sums) as engine:
        result = await engine.infer(engine.open(), steps(1, 2, 3), outputs=outputs)
        assert result.outputs.shape == (len(expected), 1)
        assert result.outputs.ravel().tolist() == expected
        assert result.steps == 3


@given(
    lengths=st.lists(st.integers(1, 37), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    threaded=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_batched_and_chunked_equal_alone_and_whole(
    lstm: Path, lengths: list[int], cuts: list[int], threaded: bool
):
    rng = np.random.default_rng(len(lengths))
    inputs = [rng.normal(size=(length, 3)).astype(np.float32) for length in lengths]
    alone = [whole_run(lstm, x) for x in inputs]

    async def stream(engine: Engine, x: np.ndarray) -> tuple[np.ndarray, Any]:
        slot, pieces, at, n = engine.open(), [], 0, 0
        while at < len(x):
            piece = x[at : at + cuts[n % len(cuts)]]
            pieces.append((await engine.infer(slot, piece)).outputs)
            at, n = at + len(piece), n + 1
        return np.concatenate(pieces), engine.read(slot)

    async with running_engine(lstm, seconds_a_run=THREADED if threaded else INLINE) as engine:
        together = await asyncio.gather(*(stream(engine, x) for x in inputs))
    for (y, state), (y_alone, state_alone) in zip(together, alone, strict=True):
        assert np.array_equal(y, y_alone)
        assert all(np.array_equal(a, b) for a, b in zip(state, state_alone, strict=True))


def whole_run(path: Path, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    runner = ModelRunner(path)
    output = runner.run(x[None], [np.zeros(s.batch_shape(1), np.float32) for s in runner.spec.states])
    return output.outputs[0], [
        np.take(s, 0, axis=spec.batch_axis) for s, spec in zip(output.states, runner.spec.states, strict=True)
    ]


async def test_inputs_need_not_lie_in_one_piece(lstm: Path):
    x = np.random.default_rng(0).normal(size=(13, 6)).astype(np.float32)[:, ::2]
    async with running_engine(lstm) as engine:
        scattered, whole = await asyncio.gather(
            engine.infer(engine.open(), x), engine.infer(engine.open(), np.ascontiguousarray(x))
        )
    assert np.array_equal(scattered.outputs, whole.outputs)
    assert np.array_equal(whole.outputs, whole_run(lstm, np.ascontiguousarray(x))[0])


async def test_who_leaves_while_his_call_runs_as_one_with_others_moves_nothing(
    sums: Path, monkeypatch: pytest.MonkeyPatch
):
    async with running_engine(sums) as engine:
        slot, run = engine.open(), engine._runner.run

        def left_meanwhile(inputs: Any, states: Any) -> Any:
            if inputs.shape[1] == 2:
                engine.withdraw(calls[1])
            return run(inputs, states)

        monkeypatch.setattr(engine._runner, "run", left_meanwhile)
        calls = [engine.submit(slot, steps(value)) for value in (1, 10, 100)]
        first, left, last = await asyncio.gather(*map(engine.result, calls), return_exceptions=True)
        assert isinstance(left, EngineFailure)
        assert [answer.outputs.item() for answer in (first, last) if isinstance(answer, Result)] == [1, 101]
        assert (standing(engine, slot), engine.position(slot)) == (101, 2)


async def test_a_trial_leaves_the_state_as_it_was(sums: Path):
    async with running_engine(sums) as engine:
        slot = engine.open()
        await engine.infer(slot, steps(5))
        for inputs in (steps(1), steps(*range(13))):
            trial = await engine.infer(slot, inputs, commit=False, return_state=True)
            assert trial.outputs[-1, 0] == 5 + inputs.sum()
            assert trial.state is not None
            assert trial.state[0][0, 0] == 5 + inputs.sum()
            assert standing(engine, slot) == 5


async def test_a_row_that_overflows_fails_alone_and_keeps_its_state(sums: Path):
    async with running_engine(sums, max_chunk=4) as engine:
        good, bad = engine.open(), engine.open()
        await engine.infer(bad, steps(7))
        huge = np.finfo(np.float32).max
        outcomes = await asyncio.gather(
            engine.infer(good, steps(1, 1, 1, 1, 1, 1)),
            engine.infer(bad, steps(1, 1, 1, 1, huge, huge)),
            return_exceptions=True,
        )
        assert not isinstance(outcomes[0], BaseException)
        assert isinstance(outcomes[1], NonFiniteResult)
        assert outcomes[1].fields["last_good_step"] == 4
        assert standing(engine, good) == 6
        assert standing(engine, bad) == 7, "four good steps of the failed call were undone too"
        assert (await engine.infer(bad, steps(1))).outputs.tolist() == [[8]]


async def test_a_failed_run_fails_only_its_rows(sums: Path, monkeypatch: pytest.MonkeyPatch):
    async with running_engine(sums) as engine:
        slot, other = engine.open(), engine.open()
        await engine.infer(slot, steps(3))
        run = engine._runner.run

        def broken(inputs: Any, states: Any) -> Any:
            if inputs.shape[1] == 4:
                raise RuntimeError("no memory")
            return run(inputs, states)

        monkeypatch.setattr(engine._runner, "run", broken)
        failed, fine = await asyncio.gather(
            engine.infer(slot, steps(*range(13))), engine.infer(other, steps(1, 1)), return_exceptions=True
        )
        assert isinstance(failed, EngineFailure)
        assert "no memory" not in failed.message, "internals stay in the log"
        assert not isinstance(fine, BaseException)
        assert standing(engine, slot) == 3
        assert (await engine.infer(slot, steps(1))).outputs.tolist() == [[4]]


async def test_a_fault_while_answering_puts_the_rows_back(sums: Path, monkeypatch: pytest.MonkeyPatch):
    async with running_engine(sums) as engine:
        slots = [engine.open(), engine.open()]
        await asyncio.gather(*(engine.infer(slot, steps(5)) for slot in slots))

        def no_memory(*_: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(engine._settlement, "_conclude", no_memory)
        outcomes = await asyncio.gather(*(engine.infer(slot, steps(1)) for slot in slots), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineFailure] * 2
        assert [(standing(engine, slot), engine.position(slot)) for slot in slots] == [(5, 1), (5, 1)]


async def test_a_fault_while_answering_leaves_alone_who_was_answered_before(
    sums: Path, monkeypatch: pytest.MonkeyPatch
):
    async with running_engine(sums) as engine:
        slots = [engine.open(), engine.open()]
        await asyncio.gather(*(engine.infer(slot, steps(5)) for slot in slots))
        conclude = engine._settlement._conclude

        def no_memory_for_the_second(request: Request, result: Result) -> None:
            if request.slot == slots[1]:
                raise MemoryError
            conclude(request, result)

        monkeypatch.setattr(engine._settlement, "_conclude", no_memory_for_the_second)
        outcomes = await asyncio.gather(*(engine.infer(slot, steps(1)) for slot in slots), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Result, EngineFailure]
        assert [(standing(engine, slot), engine.position(slot)) for slot in slots] == [(6, 2), (5, 1)]


async def test_an_engine_that_stopped_by_a_fault_lets_nobody_wait(sums: Path, monkeypatch: pytest.MonkeyPatch):
    async with running_engine(sums) as engine:
        slot = engine.open()
        await engine.infer(slot, steps(5))

        def broken(now: float) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(engine._scheduler, "next_batch", broken)
        calls = [engine.submit(slot, steps(1)), engine.submit(engine.open(), steps(1))]
        outcomes = await asyncio.gather(*map(engine.result, calls), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineFailure] * 2
        assert engine.failed, "readiness tells"
        with pytest.raises(EngineFailure):
            await engine.infer(slot, steps(1))
        assert standing(engine, slot) == 5


async def test_empty_inputs_leave_nothing_behind(sums: Path):
    async with running_engine(sums) as engine:
        slot = engine.open()
        with pytest.raises(ValueError, match="negative shift"):
            await engine.infer(slot, steps())
        assert engine._scheduler.num_requests == 0
        assert (await engine.infer(slot, steps(1))).outputs.tolist() == [[1]]


@pytest.mark.parametrize("seconds_a_run", [INLINE, THREADED], ids=["inline", "threaded"])
@pytest.mark.parametrize("ticks", range(6))
async def test_a_caller_who_leaves_changes_nothing(sums: Path, seconds_a_run: float, ticks: int):
    async with running_engine(sums, max_chunk=2, seconds_a_run=seconds_a_run) as engine:
        slot = engine.open()
        await engine.infer(slot, steps(10))
        call = asyncio.create_task(engine.infer(slot, steps(*[1] * 101)))
        for _ in range(ticks):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert standing(engine, slot) == 10, "the row is quiet and as it was once the call has ended"
        assert (await engine.infer(slot, steps(1))).outputs.tolist() == [[11]]


async def test_a_full_queue_refuses_at_once(sums: Path):
    async with running_engine(sums, max_queue=2) as engine:
        calls = [asyncio.create_task(engine.infer(engine.open(), steps(1))) for _ in range(3)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes[2:]] == [QueueFull]
        assert outcomes[2].fields["retry_after"] > 0
        assert [outcome.outputs.tolist() for outcome in outcomes[:2]] == [[[1]], [[1]]]


async def test_a_queue_of_too_many_seconds_refuses_and_says_how_long(sums: Path):
    async with running_engine(sums, seconds_a_run=1.0, max_queue_seconds=2.0) as engine:
        long = asyncio.create_task(engine.infer(engine.open(), steps(*[1] * 40)))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as refused:
            await engine.infer(engine.open(), steps(*[1] * 40))
        assert refused.value.fields["retry_after"] == 40
        assert (await engine.infer(engine.open(), steps(1))).steps == 1, "jobs do not turn streams away"
        assert (await long).outputs[-1, 0] == 40, "what was accepted is served, however long it is"


async def test_slots_run_out_and_come_back_clean(sums: Path):
    async with running_engine(sums, num_slots=2) as engine:
        first, _ = engine.open(), engine.open()
        await engine.infer(first, steps(9))
        with pytest.raises(NoRoom):
            engine.open()
        engine.close(first)
        assert standing(engine, engine.open()) == 0, "the next owner sees nothing of the last"


async def test_a_call_without_a_sequence_leaves_no_slot_behind(sums: Path):
    async with running_engine(sums, num_slots=1) as engine:
        for _ in range(3):
            result = await engine.infer_once(steps(1, 2), (np.full((1, 1), 10, np.float32),), return_state=True)
            assert result.outputs.ravel().tolist() == [11, 13]
        with pytest.raises(NonFiniteResult):
            await engine.infer_once(steps(*[np.finfo(np.float32).max] * 2))
        assert standing(engine, engine.open()) == 0


async def test_stopping_finishes_what_was_accepted_and_refuses_the_rest(sums: Path):
    async with running_engine(sums, max_chunk=1, seconds_a_run=THREADED) as engine:
        slot = engine.open()
        accepted = asyncio.create_task(engine.infer(slot, steps(*[1] * 30)))
        await asyncio.sleep(0)
        await engine.stop(drain_seconds=30)
        assert (await accepted).outputs[-1, 0] == 30
        with pytest.raises(Draining):
            await engine.infer(slot, steps(1))


async def test_stopping_without_patience_undoes_what_is_not_done(sums: Path):
    async with running_engine(sums, max_chunk=1, seconds_a_run=THREADED) as engine:
        slot = engine.open()
        accepted = asyncio.create_task(engine.infer(slot, steps(*[1] * 5000)))
        for _ in range(3):
            await asyncio.sleep(0)
        await engine.stop(drain_seconds=0)
        with pytest.raises(Draining):
            await accepted
        assert standing(engine, slot) == 0


async def test_calls_that_wait_one_behind_the_other_run_as_one(sums: Path, monkeypatch: pytest.MonkeyPatch):
    async with running_engine(sums) as engine:
        slot, shapes, run = engine.open(), [], engine._runner.run

        def watched(inputs: Any, states: Any) -> Any:
            shapes.append(inputs.shape[:2])
            return run(inputs, states)

        monkeypatch.setattr(engine._runner, "run", watched)
        modes: list[Any] = ["all", "last", "none"]
        calls = [engine.submit(slot, steps(n, n), outputs=modes[n % 3]) for n in range(9)]
        answers = [(await engine.result(call)).outputs.ravel().tolist() for call in calls]
        sums_after = np.cumsum(np.repeat(range(9), 2)).reshape(9, 2).tolist()
        assert answers == [{0: both, 1: both[1:], 2: []}[n % 3] for n, both in enumerate(sums_after)]
        assert shapes == [(1, 2), (1, 16)], "the first alone, as it came; the eight behind it together"


async def test_calls_that_ask_for_more_than_their_steps_do_not_run_as_one(sums: Path):
    async with running_engine(sums) as engine:
        slot = engine.open()
        calls = [
            engine.submit(slot, steps(1)),
            engine.submit(slot, steps(2)),
            engine.submit(slot, steps(4), commit=False),
            engine.submit(slot, steps(8), return_state=True),
            engine.submit(slot, steps(16), at=3),
            engine.submit(slot, steps(32), at=7),
        ]
        *results, out_of_turn = await asyncio.gather(*map(engine.result, calls), return_exceptions=True)
        assert [result.outputs.item() for result in results] == [1, 3, 7, 11, 27]
        assert results[3].state[0].item() == 11
        assert isinstance(out_of_turn, OutOfTurn)
        assert standing(engine, slot) == 27


async def test_when_calls_fail_together_each_has_the_fate_it_would_have_had_alone(sums: Path):
    async with running_engine(sums) as engine:
        slot, huge = engine.open(), float(np.finfo(np.float32).max)
        calls = [engine.submit(slot, steps(*values)) for values in ([1], [2], [huge, huge], [4])]
        calls.append(engine.submit(slot, steps(5), at=5))
        outcomes = await asyncio.gather(*map(engine.result, calls), return_exceptions=True)
        sums_or_errors = [o if isinstance(o, BaseException) else o.outputs.ravel().tolist() for o in outcomes]
        assert sums_or_errors[:2] == [[1], [3]]
        assert isinstance(sums_or_errors[2], NonFiniteResult)
        assert sums_or_errors[3] == [7]
        assert isinstance(sums_or_errors[4], OutOfTurn), "it was meant for step 5, and two steps failed"


@given(
    calls=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40), st.booleans()), min_size=1, max_size=30),
    cancels=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 8)), max_size=12),
    threaded=st.booleans(),
)
@example(  # a caller leaves between two runs of calls that run as one
    calls=[(0, 1, False)] * 4 + [(0, 2, False)] + [(1, 1, False)] * 2 + [(1, 3, False), (1, 1, True)],
    cancels=[(0, 1), (6, 2)],
    threaded=False,
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_row_holds_just_what_was_acknowledged(sums: Path, calls: Any, cancels: Any, threaded: bool):
    """Whatever is sent, cancelled or overflows in between: no value is lost, doubled or in another row."""
    huge = float(np.finfo(np.float32).max)
    async with running_engine(sums, max_chunk=4, seconds_a_run=THREADED if threaded else INLINE) as engine:
        slots = [engine.open() for _ in range(3)]
        tasks = []
        for n, (row, length, overflows) in enumerate(calls):
            values = [huge, huge] if overflows and n % 4 == 0 else [1] + [0] * (length - 1)
            tasks.append(asyncio.create_task(engine.infer(slots[row], steps(*values))))
        for index, ticks in cancels:
            for _ in range(ticks):
                await asyncio.sleep(0)
            if index < len(tasks):
                tasks[index].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for row, slot in enumerate(slots):
            mine = [
                o for (r, _, _), o in zip(calls, outcomes, strict=True) if r == row and not isinstance(o, BaseException)
            ]
            assert [float(o.outputs[-1, 0]) for o in mine] == list(range(1, len(mine) + 1)), "in order, each once"
            assert standing(engine, slot) == len(mine)
        assert engine._scheduler.num_requests == 0


async def test_a_minute_of_silence_does_not_slow_the_steps(lstm: Path):
    """Decaying states must not end as denormals, which cost many times a normal number."""
    runner = ModelRunner(lstm)
    tiny = [np.full(s.batch_shape(1), 1e-40, np.float32) for s in runner.spec.states]
    output = runner.run(np.full((1, 1, 3), 1e-40, np.float32), tiny)
    below = [np.abs(a[(a != 0)]).min(initial=1.0) for a in (output.outputs, *output.states)]
    assert min(below) >= np.finfo(np.float32).tiny


async def test_rows_that_run_together_grow_with_what_is_learnt_of_their_cost(
    sums: Path, monkeypatch: pytest.MonkeyPatch
):
    async with running_engine(sums, max_rows=16, seconds_a_run=1.0) as engine:
        slots, shapes, run = [engine.open() for _ in range(16)], [], engine._runner.run

        def watched(inputs: Any, states: Any) -> Any:
            shapes.append(len(inputs))
            return run(inputs, states)

        monkeypatch.setattr(engine._runner, "run", watched)
        for n in range(40):
            results = await asyncio.gather(*(engine.infer(slot, steps(1)) for slot in slots))
            assert [result.outputs.item() for result in results] == [n + 1] * 16
    assert (shapes[0], max(shapes[-4:])) == (1, 16)
