"""Sequences whose inputs are drawn, and whose outputs are known from the model run alone, whole, offline."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass
class Course:
    """`inputs` (T, F) and `outputs` (T, O); it has got as far as `step`."""

    model: str
    name: str
    inputs: Array
    outputs: Array
    final: dict[str, Array]
    """Its states after the last step, each without the batch axis."""
    step: int = 0

    @property
    def path(self) -> str:
        return f"/v1/models/{self.model}/sequences/{self.name}"

    @property
    def steps_left(self) -> int:
        return len(self.inputs) - self.step

    def body(self, steps: int, begin: int | None = None, **fields: Any) -> dict[str, Any]:
        """A call for so many steps, from where it is or from `begin`."""
        begin = self.step if begin is None else begin
        return {"inputs": self.inputs[begin : begin + steps].tolist(), "step": begin, **fields}

    def infer_body(self, steps: int) -> dict[str, Any]:
        """The same in the words of the Open Inference Protocol."""
        inputs = self.inputs[self.step : self.step + steps]
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, *inputs.shape], "data": inputs.ravel().tolist()}
        told = {"sequence_id": self.name, "sequence_step": self.step, "sequence_start": self.step == 0}
        return {"inputs": [tensor], "parameters": told}

    def is_answer(self, document: dict[str, Any], steps: int, begin: int | None = None, *, moves: bool = True) -> bool:
        """Is it, bit for bit, what these steps give, and the step that they lead to?"""
        begin = self.step if begin is None else begin
        expected = self.outputs[begin : begin + steps]
        outputs = np.array(document["outputs"], np.float32).reshape(expected.shape)
        return document["step"] == begin + steps and np.array_equal(outputs, expected)

    def is_final(self, document: dict[str, Any]) -> bool:
        """Is it, bit for bit, the state at the end?"""
        return document["step"] == len(self.inputs) and all(
            np.array_equal(np.array(document["state"][name], np.float32), state) for name, state in self.final.items()
        )


class Offline:
    """The models of a repository, run without a server."""

    def __init__(self, repository: Path, chance: random.Random) -> None:
        self._repository = repository
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._rng = np.random.default_rng(chance.getrandbits(32))

    def course(self, model: str, name: str, steps: int) -> Course:
        inputs = self.inputs(model, steps)
        return Course(model, name, inputs, *self.run(model, inputs))

    def inputs(self, model: str, steps: int) -> Array:
        """(T, F), small integers: their running sum is exact."""
        features = self._session(model).get_inputs()[0].shape[2]
        return self._rng.integers(-9, 10, (steps, features)).astype(np.float32)

    def run(self, model: str, inputs: Array) -> tuple[Array, dict[str, Array]]:
        """All outputs (T, O), and the states after them, each without the batch axis."""
        session = self._session(model)
        x, *states = session.get_inputs()
        begin = {state.name: np.zeros((state.shape[0], 1, state.shape[2]), np.float32) for state in states}
        outputs, *final = session.run(None, {x.name: inputs[None], **begin})
        return outputs[0], {state.name: value[:, 0] for state, value in zip(states, final, strict=True)}

    def _session(self, model: str) -> onnxruntime.InferenceSession:
        if model not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            path = self._repository / model / "1" / "model.onnx"
            providers = ["CPUExecutionProvider"]
            self._sessions[model] = onnxruntime.InferenceSession(str(path), options, providers=providers)
        return self._sessions[model]
