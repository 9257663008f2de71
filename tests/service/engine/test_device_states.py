"""States on a device: an engine answers and keeps just what it would with states on the host, to the last bit.

Other tests of the engine run on both, see `either_arena`; here both run side by side, and the device fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import loading, threads
from service.engine import device_runner
from service.engine.device_rows import DeviceRows, DeviceStates
from service.engine.device_runner import DeviceRunner
from service.engine.engine import Engine
from service.engine.model_runner import ModelRunner
from service.engine.request import Ending
from service.engine.state_arena import Rows
from service.errors import CarouselError, EngineFailure, ModelInvalid
from service.metrics import EngineMetrics, Metrics
from service.repository import scan
from service.settings import Settings
from tests.service import onnx_models
from tests.service.engine.engines import INLINE, THREADED, running_engine, standing, steps
from tests.service.engine.test_state_arena import NEEDS_CUDA
from tests.service.engine.test_volleys import fire

pytestmark = pytest.mark.anyio

MODELS: dict[str, Callable[[Path], Path]] = {
    "sums": partial(onnx_models.running_sum, features=3),
    "lstm": partial(onnx_models.lstm, hidden=20),
    "deep-lstm": partial(onnx_models.lstm, hidden=12, layers=3),
    "gru": partial(onnx_models.gru, hidden=20),
    "gru-cho": partial(onnx_models.gru, hidden=20, linear_before_reset=0),
    "shapes": partial(onnx_models.shapes, features=3),
}

Deed = tuple[str, list[int], int, int]
"""(what, sequences, steps, seed)"""


@st.composite
def deeds(draw: st.DrawFn) -> list[Deed]:
    kinds = st.sampled_from(["call", "with state", "try", "overflow", "late", "leave", "volley", "fork", "once"])
    which = st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True)
    return draw(st.lists(st.tuples(kinds, which, st.integers(1, 11), st.integers(0, 99)), min_size=1, max_size=12))


@pytest.mark.parametrize("model", MODELS)
@given(script=deeds(), threaded=st.booleans())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_happens_is_the_same_on_host_and_device(
    tmp_path: Path, model: str, script: list[Deed], threaded: bool
) -> None:
    path = MODELS[model](tmp_path)
    told = []
    for runner in (ModelRunner, DeviceRunner):
        seconds = THREADED if threaded else INLINE
        async with running_engine(path, open_runner=runner, seconds_a_run=seconds, max_chunk=4) as engine:
            assert isinstance(engine._rows, DeviceRows if runner is DeviceRunner else Rows)
            slots = [engine.open() for _ in range(5)]
            outcomes = [told_of(outcome) for deed in script for outcome in await do(engine, slots, deed)]
            told.append((outcomes, [(bits(engine.read(slot)), engine.position(slot)) for slot in slots]))
    assert told[0] == told[1]


async def do(engine: Engine, slots: list[int], deed: Deed) -> list[Any]:
    """What comes back to each caller: a result, arrays, or an error."""
    what, which, num_steps, seed = deed
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, (len(which), num_steps, *engine.spec.input.step_shape)).astype(np.float32)
    chosen = [slots[n] for n in which]
    if what == "volley":
        volley = await fire(engine, chosen, overflowing(x, rng))
        return [volley.outputs, *(volley.errors.get(row) for row in range(len(chosen)))]
    if what == "fork":
        engine.write(chosen[0], engine.read(chosen[-1]), engine.position(chosen[-1]))
        return []
    if what == "leave":
        calls = [asyncio.create_task(engine.infer(slot, piece)) for slot, piece in zip(chosen, x, strict=True)]
        await asyncio.sleep(0)
        calls[0].cancel()
        await asyncio.wait(calls)
        engine.write(chosen[0], None, 0)  # whether it left in time is a matter of moments
        return [call.result() for call in calls[1:]]
    if what == "once":
        once = (engine.infer_once(piece, engine.read(chosen[0]), return_state=True) for piece in x)
        return await asyncio.gather(*once)
    asked: dict[str, Any] = {
        "with state": {"return_state": True},
        "try": {"commit": False, "return_state": True},
        "late": {"deadline": 0.0},
    }
    inputs = overflowing(x, rng) if what == "overflow" else x
    calls = [engine.infer(slot, piece, **asked.get(what, {})) for slot, piece in zip(chosen, inputs, strict=True)]
    return await asyncio.gather(*calls, return_exceptions=True)


def overflowing(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With a number in some rows that leaves no state or output finite."""
    x[rng.random(len(x)) < 0.5, rng.integers(x.shape[1])] = np.nan
    return x


def told_of(outcome: Any) -> Any:
    if isinstance(outcome, Exception):
        assert isinstance(outcome, CarouselError | TimeoutError), outcome
        return type(outcome).__name__, getattr(outcome, "fields", None)
    if outcome is None or isinstance(outcome, np.ndarray):
        return None if outcome is None else np.nan_to_num(outcome).tobytes()
    return outcome.outputs.tobytes(), outcome.steps, outcome.position, bits(outcome.state or ())


def bits(state: Any) -> list[bytes]:
    return [part.tobytes() for part in state]


# -- a device that fails ---------------------------------------------------------------------------------------------


class Refusing:
    """Instead of a method of the arena: it fails from call `first` on, `times` times."""

    def __init__(self, method: Callable[..., Any], first: int = 1, times: int = 1) -> None:
        self.method, self.first, self.times, self.calls = method, first, times, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.first <= self.calls < self.first + self.times:
            raise RuntimeError("CUDA failure 2: out of memory")
        return self.method(*arguments)


@pytest.mark.parametrize("method", ["gather", "non_finite", "scatter", "save"])
async def test_a_device_that_fails_once_fails_those_rows_and_leaves_them_as_they_were(
    sums: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    async with running_engine(sums, open_runner=DeviceRunner, max_chunk=4) as engine:
        slots = [engine.open(), engine.open()]
        await asyncio.gather(*(engine.infer(slot, steps(1, 2)) for slot in slots))
        monkeypatch.setattr(engine._rows, method, Refusing(getattr(engine._rows, method)))
        calls = (engine.infer(slot, steps(1, 1, 1, 1, 1)) for slot in slots)
        failed = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in failed] == [EngineFailure] * 2
        assert [(standing(engine, slot), engine.position(slot)) for slot in slots] == [(3, 2), (3, 2)]
        assert (await engine.infer(slots[0], steps(1))).outputs.tolist() == [[4]]
        assert not engine.failed


async def test_a_volley_whose_states_cannot_be_gathered_fails_and_the_next_does_not(
    sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_engine(sums, open_runner=DeviceRunner) as engine:
        slots = [engine.open(), engine.open()]
        monkeypatch.setattr(engine._rows, "gather", Refusing(engine._rows.gather))
        volley = await fire(engine, slots, [[[1]], [[2]]])
        assert [type(volley.errors[row]) for row in range(2)] == [EngineFailure] * 2
        assert not (await fire(engine, slots, [[[1]], [[2]]])).errors
        assert [standing(engine, slot) for slot in slots] == [1, 2]


@pytest.mark.parametrize("first", [1, 2], ids=["with the first chunk", "with the second chunk"])
async def test_a_device_that_is_gone_stops_the_engine_and_nobody_waits_for_it(
    sums: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    async with running_engine(sums, open_runner=DeviceRunner, max_chunk=4) as engine:
        slots = [engine.open() for _ in range(3)]
        await asyncio.gather(*(engine.infer(slot, steps(1)) for slot in slots))
        monkeypatch.setattr(engine._rows, "scatter", Refusing(engine._rows.scatter, first, 10**6))
        calls = (engine.infer(slot, steps(*[1] * (5 + n))) for n, slot in enumerate(slots))
        async with asyncio.timeout(10):
            failed = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in failed] == [EngineFailure] * 3
        assert engine.failed
        with pytest.raises(EngineFailure, match="must be restarted"):
            await engine.infer(slots[0], steps(1))


async def test_states_that_were_committed_and_cannot_be_written_stop_the_engine(
    sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that lag behind the store must not be gone on from."""

    async def commit(endings: list[Ending]) -> list[CarouselError | None]:
        return [None] * len(endings)

    async with running_engine(sums, open_runner=DeviceRunner, commit=commit) as engine:
        slots = [engine.open(), engine.open()]
        monkeypatch.setattr(engine._rows, "scatter", Refusing(engine._rows.scatter, 1, 10**6))
        requests = [engine.submit(slot, steps(1), owner=slot) for slot in slots]
        async with asyncio.timeout(10):
            failed = await asyncio.gather(*map(engine.result, requests), return_exceptions=True)
        assert [type(error) for error in failed] == [EngineFailure] * 2
        assert engine.failed


# -- which models are served so --------------------------------------------------------------------------------------


def test_states_stay_on_the_device_where_the_provider_is_cuda_and_nobody_says_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    for kind in (ModelRunner, DeviceRunner):
        monkeypatch.setattr(threads, kind.__name__, lambda *_, kind=kind, **__: opened.append(kind.__name__))
    for chosen in ({}, {"provider": "cuda"}, {"provider": "cuda", "device_states": False}):
        threads.open_runner(Path(), Settings(intra_op_threads=1, **chosen))
    assert opened == ["ModelRunner", "DeviceRunner", "ModelRunner"]


async def test_a_model_without_states_is_served_all_the_same(tmp_path: Path) -> None:
    path = onnx_models.lstm(tmp_path, bidirectional=True)
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    outputs = []
    for runner in (ModelRunner, DeviceRunner):
        async with running_engine(path, open_runner=runner) as engine:
            outputs.append((await engine.infer_once(x)).outputs.tobytes())
    assert outputs[0] == outputs[1]
    stateless = onnx_models.stateless(tmp_path)
    async with running_engine(stateless, open_runner=DeviceRunner) as engine:
        assert isinstance(engine._rows, Rows)
        assert (await engine.infer_once(steps(1, 2, 3))).outputs.ravel().tolist() == [1, 3, 6]


def test_more_slots_than_the_device_counts_are_refused(lstm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = DeviceRunner(lstm)
    monkeypatch.setattr(device_runner, "MOST_NUMBERS", 40 * 8 - 1)
    runner.rows(7)
    with pytest.raises(ModelInvalid, match="7 sequences of this model at most, and 8 are asked for"):
        runner.rows(8)


def no_scatter(rows: DeviceRows, *_: Any) -> None:
    """Nothing reaches the device."""


def no_device(rows: DeviceRows, *_: Any) -> None:
    raise RuntimeError("CUDA failure 700")


@pytest.mark.parametrize(
    ("part", "broken", "reason"),
    [
        ("_scatter_to", no_scatter, "rows come back changed"),
        ("non_finite", lambda rows, states: [], "numbers that are not finite are not found"),
        ("_gather_from", no_device, "CUDA failure 700"),
    ],
)
async def test_states_stay_on_the_host_where_the_device_fails_at_a_trial(
    lstm: Path, monkeypatch: pytest.MonkeyPatch, part: str, broken: Any, reason: str
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(device_runner.log, "warning", lambda event, **fields: told.append((event, fields["reason"])))
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(DeviceRows, part, broken)
        async with running_engine(lstm, open_runner=DeviceRunner) as engine:
            assert isinstance(engine._rows, Rows)
            outputs = (await engine.infer_once(x)).outputs
    assert told == [("states_stay_on_the_host", reason)]
    async with running_engine(lstm, open_runner=DeviceRunner) as engine:
        assert isinstance(engine._rows, DeviceRows)
        slot = engine.open()
        assert not any(tensor.any() for tensor in engine.read(slot)), "the trial leaves nothing behind"
        assert np.array_equal((await engine.infer(slot, x)).outputs, outputs)


def test_measuring_finds_states_of_another_shape_than_promised(tmp_path: Path) -> None:
    path = onnx_models.lstm(tmp_path)
    runner = DeviceRunner(path)
    assert runner.measure(3, 2) > 0
    output = runner.run(np.zeros((3, 2, 3), np.float32), runner._enter([np.zeros((1, 3, 8), np.float32)] * 2))
    assert isinstance(output.states, DeviceStates)
    runner._shapes = lambda _: [(1, 3, 8), (1, 2, 8)]  # type: ignore[method-assign]
    with pytest.raises(ModelInvalid, match="'c_next' came out as"):
        runner.measure(3, 2)


def test_the_operator_is_told_and_such_a_model_keeps_its_states_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    onnx_models.gru(tmp_path, linear_before_reset=0)
    warned: list[dict[str, Any]] = []
    monkeypatch.setattr(loading.log, "warning", lambda event, **fields: warned.append({"event": event, **fields}))
    monkeypatch.setattr(threads, "ModelRunner", DeviceRunner)
    (file,) = scan(tmp_path)
    chosen = Settings(max_rows=4, max_chunk=4, intra_op_threads=1)
    for on_cpu in ([], ["GRU"]):
        monkeypatch.setattr("service.engine.model_runner.recurrent_on_cpu", lambda _, on_cpu=on_cpu: on_cpu)
        opened = loading.open_model(file, chosen, EngineMetrics(Metrics(), "gru", 1), beside_others=False)
        assert isinstance(opened.engine._rows, Rows if on_cpu else DeviceRows)
    assert [(w["event"], w["model"], w["version"], w["operators"]) for w in warned] == [
        ("model_runs_on_cpu", "gru", 1, ["GRU"])
    ]


@NEEDS_CUDA
@pytest.mark.parametrize("model", MODELS)
async def test_on_cuda_states_go_on_as_on_the_host(tmp_path: Path, model: str) -> None:
    path, rng = MODELS[model](tmp_path), np.random.default_rng(0)
    x = rng.normal(size=(5, 23, 3)).astype(np.float32)
    told = []
    for runner in (partial(ModelRunner, provider="cuda"), partial(DeviceRunner, provider="cuda")):
        async with running_engine(path, open_runner=runner, max_chunk=8) as engine:
            slots = [engine.open() for _ in x]
            for at, end in ((0, 1), (1, 14), (14, 23)):
                calls = (engine.infer(slot, row[at:end]) for slot, row in zip(slots, x, strict=True))
                results = await asyncio.gather(*calls)
            told.append([result.outputs for result in results] + [p for slot in slots for p in engine.read(slot)])
    for one, other in zip(*told, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)
