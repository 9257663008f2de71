"""The models that ship with the project reach their figures through the running service, and are what was exported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import onnx
import pytest

from export.metadata import read_manifest
from models.tasks import TASKS
from models.tasks.task import Array, Arrays
from tests.service.api.processes import Served, serve

REPOSITORY = Path(__file__).parents[2] / "model_repository"
FIGURES = {
    "vowels": (96.0, "at least"),
    "weather": (4.3, "at most"),
    "kjv": (1.60, "at most"),
    "adding-lstm": (0.01, "at most"),
    "adding-gru": (0.01, "at most"),
    "adding-gru-cho": (0.01, "at most"),
    "adding-rnn": (0.1, "at least"),
}
MSGPACK = {"Content-Type": "application/msgpack"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(REPOSITORY) as served:
        yield served


def whole_sequences(served: Served, model: str, inputs: Arrays) -> Arrays:
    """Outputs of /predict, twenty sequences a call."""
    outputs: list[Array] = []
    with httpx.Client(base_url=served.address, timeout=60) as client:
        for at in range(0, len(inputs), 20):
            body = {"sequences": [{"inputs": x.tolist()} for x in inputs[at : at + 20]], "return_state": False}
            answer = client.post(f"/v1/models/{model}/predict", content=msgspec.msgpack.encode(body), headers=MSGPACK)
            assert answer.status_code == 200, answer.text
            sequences = msgspec.msgpack.decode(answer.content)["sequences"]
            outputs += [np.array(sequence["outputs"], np.float32) for sequence in sequences]
    return outputs


@pytest.mark.parametrize("model", FIGURES)
def test_a_bundled_model_reaches_its_figure_through_the_service(served: Served, model: str):
    task, (bound, side) = TASKS[model], FIGURES[model]
    figure = task.evaluate(lambda inputs: whole_sequences(served, model, inputs))
    print(f"{model}: {task.metric_name} {figure:.6g} {task.metric_unit}")  # shown by pytest -rP
    assert figure >= bound if side == "at least" else figure <= bound
    card = httpx.get(f"{served.address}/v1/models/{model}").json()
    told = {metric["name"]: metric["value"] for metric in card["metrics"] if metric["split"] == "test"}
    assert told[task.metric_name] == pytest.approx(figure, rel=1e-5), "the model card tells what is served"


@pytest.mark.parametrize("model", FIGURES)
def test_a_stream_of_single_steps_equals_the_whole_sequence(served: Served, model: str):
    x = TASKS[model].test_split().inputs[0][:60]
    whole = whole_sequences(served, model, [x])[0]
    steps = f"/v1/models/{model}/sequences/stream/steps"
    with httpx.Client(base_url=served.address, timeout=60) as client:
        answers = [
            client.post(steps, json={"inputs": [v.tolist()], "step": t, "start": t == 0}) for t, v in enumerate(x)
        ]
    assert [answer.status_code for answer in answers] == [200] * len(x)
    assert np.array_equal(np.concatenate([np.array(a.json()["outputs"], np.float32) for a in answers]), whole)


@pytest.mark.parametrize("model", FIGURES)
def test_a_bundled_model_is_fed_as_its_task_says(model: str):
    told = read_manifest(onnx.load(REPOSITORY / model / "1" / "model.onnx")).get("feedback")
    feedback = TASKS[model].feedback
    assert told == (None if feedback is None else [dict(source) for source in feedback])


def test_bundled_models_are_small_and_one_version_each():
    files = sorted(REPOSITORY.glob("*/*/model.onnx"))
    assert {file.parts[-3] for file in files} == FIGURES.keys()
    assert len(files) == len(FIGURES)
    assert max(file.stat().st_size for file in files) < 2 * 2**20
