"""A trained model on disk: `weights.safetensors` and `config.json`; no pickle, so loading runs no code.

`info` is free JSON; `export` reads these keys of it, all optional but the first:

    task_name     name in the tasks registry, for example "vowels"; the test split and the metric are found by it
    task          what kind of answer: "classification", "regression", "language-model"
    description   one sentence for people
    input         {"description", "unit", "labels", "vocabulary"}: labels name the F features,
                  vocabulary[i] is the text of token i
    output        {"description", "unit", "labels", "vocabulary", "kind"}: kind is "value", "probability" or "logit"
    feedback      where each input feature comes from while the model feeds itself; its form: service/model_spec.py
    metrics       [{"name", "value", "split", "unit", "better", "references": [{"name", "value", "source"}]}]
    data          {"name", "source", "licence"}
    source_commit commit of the code that trained
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.sequence_model import ModelConfig, SequenceModel

WEIGHTS, CONFIG = "weights.safetensors", "config.json"


class CheckpointError(Exception):
    """The folder is not a checkpoint, or not one of this version."""


def save(folder: str | Path, model: SequenceModel, info: dict[str, Any]) -> None:
    """Write the model and `info` (JSON values) into `folder`; a kill leaves each file old or new, never half."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    document = json.dumps({"format": 1, "config": model.config.to_json(), "info": info}, indent=2, ensure_ascii=False)
    # One tensor per name and its own memory: safetensors refuses views into shared storage.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    weights = folder / (WEIGHTS + ".part")
    save_file(tensors, weights)
    os.replace(weights, folder / WEIGHTS)
    config = folder / (CONFIG + ".part")
    config.write_text(document + "\n", encoding="utf-8")
    os.replace(config, folder / CONFIG)


def load(folder: str | Path) -> tuple[SequenceModel, dict[str, Any]]:
    """Rebuild the model, on the CPU and in evaluation mode, and return it with its `info`.

    Raises CheckpointError, with what was expected, when the folder does not hold one.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not a checkpoint: expected a folder with {CONFIG} and {WEIGHTS}")
    try:
        document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if document["format"] != 1:
            raise CheckpointError(f"{folder / CONFIG} has format {document['format']!r}; this version reads format 1")
        model = SequenceModel(ModelConfig(**document["config"]))
        model.load_state_dict(load_file(folder / WEIGHTS))
        info: dict[str, Any] = document["info"]
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is not a checkpoint of this version: {error}") from error
    return model.eval(), info
