"""Random models in the layout that is served. What a model predicts does not change how long it takes."""

from __future__ import annotations

from pathlib import Path

SMALL, LARGE, DECAYING = "lstm-h64", "lstm-h512x2", "lstm-h64-decaying"
FEATURES = {SMALL: 16, LARGE: 64, DECAYING: 16}
HIDDEN = {SMALL: 64, LARGE: 512, DECAYING: 64}
LAYERS = {SMALL: 1, LARGE: 2, DECAYING: 1}


def model_path(repository: Path, name: str) -> Path:
    return repository / name / "1" / "model.onnx"


def write_models(repository: Path) -> None:
    """Export the benchmark's models into an empty repository."""
    for name in (SMALL, LARGE, DECAYING):
        path = model_path(repository, name)
        path.parent.mkdir(parents=True)
        path.write_bytes(export_model("lstm", FEATURES[name], HIDDEN[name], LAYERS[name], name))


def export_model(cell: str, features: int, hidden: int, layers: int, name: str) -> bytes:
    """A random model as ONNX. The decaying one forgets at a different pace in each cell."""
    import torch  # only here: the processes that measure stay free of it

    from export.convert import convert
    from models.sequence_model import ModelConfig, SequenceModel

    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(cell, features, hidden, output_size=4, layers=layers)).eval()
    if name == DECAYING:
        with torch.no_grad():
            # forget gates from 0.88 to 0.99: after a minute of zeros every cell lies where numbers are denormal
            model.get_parameter("recurrent.bias_ih_l0")[hidden : 2 * hidden] = torch.linspace(2.0, 4.5, hidden)
            for gate in (0, 2, 3):
                model.get_parameter("recurrent.bias_ih_l0")[gate * hidden : (gate + 1) * hidden] = 0.0
            model.get_parameter("recurrent.bias_hh_l0").zero_()
    return convert(model, {"task": "regression"}, name)
