"""A model file on onnxruntime's CPU, run as its manifest says: whole, in chunks, and on a task's series."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.metadata import METADATA_KEY

Array = npt.NDArray[Any]
Arrays = Sequence[Array]


class Session:
    """`run(x, states) -> [y, *states]`; raises whatever onnxruntime raises for a file it cannot load."""

    def __init__(self, data: bytes, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what goes wrong is raised, and need not be printed too
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are shared
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.manifest = json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        self._x, self._y = self.manifest["inputs"][0]["name"], self.manifest["outputs"][0]["name"]
        self._states = self.manifest["states"]

    def run(self, x: Array, states: Sequence[Array]) -> list[Array]:
        """x (B, T, F) or (B, T), states (L*D, B, H) -> y (B, T, O) and the next states."""
        feeds = {self._x: x, **{spec["input"]: state for spec, state in zip(self._states, states, strict=True)}}
        outputs = [self._y, *(spec["output"] for spec in self._states)]
        results: list[Array] = self._session.run(outputs, feeds)
        return results

    def run_chunks(self, x: Array, states: Sequence[Array], sizes: Sequence[int]) -> list[Array]:
        """As `run`, in chunks of `sizes` steps (together T), the state carried from one to the next."""
        outputs, begin = [], 0
        for size in sizes:
            y, *states = self.run(x[:, begin : begin + size], states)
            outputs.append(y)
            begin += size
        return [np.concatenate(outputs, axis=1), *states]

    def zero_states(self, B: int) -> list[Array]:
        """(L*D, B, H) each."""
        return [
            np.zeros([B if axis == "batch" else axis for axis in spec["shape"]], np.float32) for spec in self._states
        ]

    def predict(self, inputs: Arrays, max_batch: int = 64) -> list[Array]:
        """Series (T_i, ...) from a zero state -> outputs (T_i, O); series of one length run together, unpadded."""
        places: dict[int, list[int]] = defaultdict(list)
        for place, series in enumerate(inputs):
            places[len(series)].append(place)
        outputs: list[Array] = [np.empty(0)] * len(inputs)
        for same_length in places.values():
            for begin in range(0, len(same_length), max_batch):
                batch = same_length[begin : begin + max_batch]
                y = self.run(np.stack([inputs[place] for place in batch]), self.zero_states(len(batch)))[0]
                for place, row in zip(batch, y, strict=True):
                    outputs[place] = row
        return outputs
