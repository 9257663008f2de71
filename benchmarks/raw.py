"""onnxruntime by itself, as the service configures it: the ceiling, and the unbatched reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.payloads import input_index, inputs_of

Array = NDArray[Any]


class RawSession:
    """`session.run` with inputs made beforehand."""

    def __init__(self, model: Path | bytes, num_threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        nodes = self.session.get_inputs()
        self.state_names = [node.name for node in nodes if node.name != "x"]
        self.state_shapes = [node.shape for node in nodes if node.name != "x"]
        self.fetch = ["y", *(f"{name}_next" for name in self.state_names)]
        self.num_features: int = next(node.shape[2] for node in nodes if node.name == "x")

    def zeros(self, rows: int) -> list[Array]:
        return [np.zeros((shape[0], rows, shape[2]), np.float32) for shape in self.state_shapes]

    def feeds(self, rows: int, steps: int) -> dict[str, Array]:
        """Random inputs and states, (B, T, F) and (L, B, H)."""
        random = np.random.default_rng(0)
        x = random.uniform(-1, 1, (rows, steps, self.num_features)).astype(np.float32)
        states = [random.uniform(-0.5, 0.5, zeros.shape).astype(np.float32) for zeros in self.zeros(rows)]
        return {"x": x, **dict(zip(self.state_names, states, strict=True))}

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        outputs: list[Array] = self.session.run(self.fetch, feeds)
        return outputs

    def replay(self, shapes: Sequence[tuple[int, int]]) -> float:
        """Seconds that runs of these (B, T) take, one after the other."""
        feeds = {shape: self.feeds(*shape) for shape in set(shapes)}
        for shape in feeds:
            self.run(feeds[shape])
        begin = perf_counter()
        for shape in shapes:
            self.session.run(self.fetch, feeds[shape])
        return perf_counter() - begin

    def steps_per_second(self, rows: int, steps: int, seconds: float) -> float:
        feeds = self.feeds(rows, steps)
        self.run(feeds)
        runs, begin = 0, perf_counter()
        while (elapsed := perf_counter() - begin) < seconds:
            self.session.run(self.fetch, feeds)
            runs += 1
        return runs * rows * steps / elapsed


class Reference:
    """Each stream of the load generator run alone, step by step."""

    def __init__(self, model: Path, seed: int = 0) -> None:
        self._raw = RawSession(model)
        self._inputs = inputs_of(seed, self._raw.num_features)
        self._known: dict[int, tuple[list[Array], list[Array]]] = {}  # stream -> (outputs, state after them)

    def check(self, kept: dict[str, list[Any]]) -> tuple[int, int]:
        """(steps compared, steps that differ in any bit)."""
        compared = wrong = 0
        for stream, answers in kept.items():
            expected = self._outputs(int(stream), len(answers))
            for got, want in zip(answers, expected, strict=False):
                compared += 1
                wrong += not np.array_equal(np.array(got, np.float32), want)
        return compared, wrong

    def _outputs(self, stream: int, num_steps: int) -> list[Array]:
        outputs, states = self._known.get(stream, ([], self._raw.zeros(1)))
        for step in range(len(outputs), num_steps):
            x = np.array([[self._inputs[input_index(stream, step)]]], np.float32)
            y, *states = self._raw.run({"x": x, **dict(zip(self._raw.state_names, states, strict=True))})
            outputs.append(y[0])
        self._known[stream] = outputs, states
        return outputs
