"""Model versions that come and go while workers have connections: answered as without workers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import onnx
from onnx import helper

from tests.service import onnx_models
from tests.service.api.clients import LSTM, SUM
from tests.service.api.socket_server import Wire, get, steps_path
from tests.service.workers.wires import TwinCallers, Twins, open_twins

OLD, NEW = b"[[0.5, -1, 2]]", b"[[3, -0.25]]"


def look_for_models(twins: Twins) -> None:
    for wire in (twins.fronted, twins.plain):
        do(wire, wire.app.state.service.registry.refresh())


def do(wire: Wire, work: object) -> None:
    asyncio.run_coroutine_threadsafe(work, wire.loop).result(30)  # type: ignore[arg-type]


def rename_state(path: Path, name: str) -> None:
    """Give the only state another name; it looks the same otherwise."""
    model = onnx.load(path)
    (document,) = (json.loads(entry.value) for entry in model.metadata_props if entry.key == "carousel")
    document["states"][0]["name"] = name
    helper.set_model_props(model, {"carousel": json.dumps(document)})
    path.write_bytes(model.SerializeToString())


def step_until_away(callers: TwinCallers, path: str, body: bytes) -> None:
    """Both answer alike all the time."""
    for _ in range(100):
        assert callers.step(path, body).status == 200
        if callers.is_away:
            return
    raise AssertionError("no worker takes the connection")


def test_sequences_of_old_and_new_versions_go_on_beside_each_other(tmp_path: Path) -> None:
    onnx_models.lstm(tmp_path, LSTM)
    with open_twins(tmp_path, model_poll_seconds=0) as twins:
        callers, old, new = twins.connect(model=LSTM), steps_path(LSTM, "old"), steps_path(LSTM, "new")
        step = b'{"inputs": %b, "return_state": true, "start": true}' % OLD
        begin = step.replace(OLD, NEW)
        step_until_away(callers, old, step)
        onnx_models.lstm(tmp_path, LSTM, 2, features=2, hidden=4, layers=2, seed=1)
        look_for_models(twins)
        assert callers.step(old, step).status == 200
        assert callers.is_away, "an old sequence stays where it is answered"
        assert callers.step(new, step).status == 422, "the new version takes other inputs"
        step_until_away(callers, new, begin)
        for _ in range(20):  # the worker reads what is sent as the new version takes it, and the old one's goes back
            assert callers.step(old, step).status == 200
        for _ in range(3):
            assert callers.step(old, step).status == 200
            assert callers.step(new, begin).status == 200
        step_until_away(callers, new, begin)
        assert callers.call(get(new.removesuffix("/steps"))).document["version"] == 2
        assert callers.call(get(old.removesuffix("/steps"))).document["version"] == 1


def test_states_are_told_by_the_names_of_their_own_version(tmp_path: Path) -> None:
    onnx_models.running_sum(tmp_path, SUM, features=2)
    body = b'{"inputs": [[1, 2]], "return_state": true, "start": true}'
    with open_twins(tmp_path, model_poll_seconds=0) as twins:
        callers, old, new = twins.connect(), steps_path(SUM, "old"), steps_path(SUM, "new")
        step_until_away(callers, old, body)
        rename_state(onnx_models.running_sum(tmp_path, SUM, 2, features=2), "total")
        look_for_models(twins)
        for path, name in ((old, "h"), (new, "total"), (old, "h")):
            for _ in range(10):
                assert callers.step(path, body).document["final_state"].keys() == {name}
        step_until_away(callers, new, body)


def test_a_model_that_is_unloaded_is_missed_alike_and_taken_up_again(tmp_path: Path) -> None:
    onnx_models.running_sum(tmp_path, SUM, features=2)
    body, begin = b'{"inputs": [[1, 2]]}', b'{"inputs": [[1, 2]], "start": true}'
    with open_twins(tmp_path, model_control=True) as twins:
        callers, path = twins.connect(), steps_path(SUM, "s")
        step_until_away(callers, path, begin)
        for wire in (twins.fronted, twins.plain):
            do(wire, wire.app.state.service.registry.unload_model(SUM))
        assert callers.step(path, body).status == 410
        assert callers.step(path, begin).status == 503
        for wire in (twins.fronted, twins.plain):
            do(wire, wire.app.state.service.registry.load_model(SUM))
        assert callers.step(path, body).status == 410
        assert callers.step(path, begin).document["step"] == 1
        step_until_away(callers, path, body)
