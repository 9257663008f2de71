"""Adopting in this very process, and running what came of it as the server does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from export.adoption.adopt import Adopted, adopt
from export.adoption.plan import Array, Wishes
from export.adoption.read import read
from export.metadata import Document
from export.publish import publish
from service.engine.model_runner import ModelRunner


def adopt_as(file: bytes, about: dict[str, str] | None = None, **wishes: Any) -> Adopted:
    return adopt(read(file), file, Wishes(about={"name": "adopted", **(about or {})}, **wishes))


class Served:
    """The published file in the server's own runner."""

    def __init__(self, root: Path, adopted: Adopted) -> None:
        self.report: Document = adopted.report
        self.runner = ModelRunner(publish(root, "adopted", adopted.data) / "model.onnx")
        self.spec = self.runner.spec
        self.runner.measure(1, 1)

    def stream(self, x: Any, given: dict[str, Any] | None = None) -> Array:
        """x (T, ...) step by step from zeros, but for the states that are given -> (T, ...)."""
        inputs = np.asarray(x, self.spec.input.dtype)[None]
        states = self.zeros(given or {})
        outputs = []
        for step in range(inputs.shape[1]):
            run = self.runner.run(inputs[:, step : step + 1], states)
            states = run.states
            outputs.append(run.outputs[0])
        self.states = {spec.name: state for spec, state in zip(self.spec.states, states, strict=True)}
        return np.concatenate(outputs)

    def whole(self, x: Any) -> Array:
        inputs = np.asarray(x, self.spec.input.dtype)[None]
        return self.runner.run(inputs, self.zeros({})).outputs[0]

    def zeros(self, given: dict[str, Any]) -> list[Any]:
        states = [np.zeros(spec.batch_shape(1), np.float32) for spec in self.spec.states]
        for spec, state in zip(self.spec.states, states, strict=True):
            state[:] = given.get(spec.name, 0)
        return states
