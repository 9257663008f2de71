"""The JSON document inside the ONNX file: all that the serving half knows of a model.

Its form is `service/model_spec.py`, repeated here and not imported: the halves share a file, not code.
"""

from __future__ import annotations

from export.graph import next_name
from export.metadata import FORMAT, Document
from models.sequence_model import SequenceModel

_INPUT_KEYS = ("description", "unit", "labels", "vocabulary")
_OUTPUT_KEYS = (*_INPUT_KEYS, "kind")


class ExportError(Exception):
    """The checkpoint cannot become a model file; the message says what to change."""


def build_manifest(model: SequenceModel, info: Document, name: str, created_at: str) -> Document:
    """Describe `model` with what `info` says of its task (keys: `models.checkpoint`).

    Raises ExportError when `info` lacks the task, or describes tensors that the model does not have.
    """
    config = model.config
    if not info.get("task"):
        raise ExportError("the checkpoint's info has no 'task' (classification, regression, language-model)")
    return {
        "format": FORMAT,
        "name": name,
        "task": info["task"],
        "description": info.get("description") or "",
        "cell": config.cell,
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "bidirectional": config.bidirectional,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "streaming": not config.bidirectional,
        "batch_invariant": True,  # `verify` proves it for every file before it is published
        "inputs": [_input(model, info)],
        "outputs": [_output(model, info)],
        "states": [_state(model, state) for state in model.state_names],
        **_feedback(model, info),
        "metrics": info.get("metrics") or [],
        "data": info.get("data"),
        "created_at": created_at,
        "source_commit": info.get("source_commit"),
    }


def _input(model: SequenceModel, info: Document) -> Document:
    config = model.config
    described = _described(info, "input", _INPUT_KEYS, config.input_size)
    if config.embedding_size is not None:
        if described.get("labels"):
            raise ExportError("info['input'] has labels, but a token model has one token a step: use vocabulary")
        return {"name": "x", "dtype": "int64", "shape": ["batch", "time"], "kind": "token", **described}
    if described.get("vocabulary"):
        raise ExportError("info['input'] has a vocabulary, but the model takes numbers, not tokens")
    return {"name": "x", "dtype": "float32", "shape": ["batch", "time", config.input_size], **described}


def _output(model: SequenceModel, info: Document) -> Document:
    config = model.config
    described = _described(info, "output", _OUTPUT_KEYS, config.output_size)
    kind = described.setdefault("kind", "probability" if config.head == "softmax" else "value")
    if (kind == "probability") != (config.head == "softmax"):
        raise ExportError(f"info['output'] says {kind!r}, but the model's head is {config.head!r}")
    return {"name": "y", "dtype": "float32", "shape": ["batch", "time", config.output_size], **described}


def _described(info: Document, part: str, keys: tuple[str, ...], size: int) -> Document:
    described: Document = {key: value for key, value in (info.get(part) or {}).items() if value is not None}
    if unknown := sorted(set(described) - set(keys)):
        raise ExportError(f"info[{part!r}] has {', '.join(unknown)}; it may have {', '.join(keys)}")
    for key in ("labels", "vocabulary"):
        if key in described and len(described[key]) != size:
            raise ExportError(f"info[{part!r}] has {len(described[key])} {key} where the model has {size} places")
    return described


def _feedback(model: SequenceModel, info: Document) -> Document:
    """Only where there is one, so that other files are as they were."""
    feedback = info.get("feedback")
    if feedback is None:
        return {}
    config = model.config
    if config.embedding_size is not None:
        raise ExportError("info has feedback, but a token model draws its next input")
    if len(feedback) != config.input_size:
        raise ExportError(
            f"info['feedback'] has {len(feedback)} sources where the model has {config.input_size} features"
        )
    places = [place for source in feedback for place in source.get("places", ())]
    if not places or not all(0 <= place < config.output_size for place in places):
        raise ExportError(f"info['feedback'] must name places of the output, 0 to {config.output_size - 1}")
    return {"feedback": feedback}


def _state(model: SequenceModel, name: str) -> Document:
    config = model.config
    shape = [config.layers * config.num_directions, "batch", config.hidden_size]
    return {"name": name, "input": name, "output": next_name(name), "dtype": "float32", "shape": shape}
