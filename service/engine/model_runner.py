"""Runs the ONNX file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.engine.request import Array, Batched
from service.engine.sessions import NoDenormals, check_provider, open_session, recurrent_on_cpu
from service.engine.state_arena import Arena, Rows
from service.errors import ModelInvalid
from service.model_spec import BATCH, METADATA_KEY, TIME, ModelSpec, Shape, StateSpec, TensorSpec, parse_manifest

_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


@dataclass(slots=True)
class RunOutput:
    """`outputs` `(B, T, ...)` float32; `states` in the form in which they came."""

    outputs: NDArray[np.float32]
    states: Batched
    seconds: float


class ModelRunner:
    """One loaded model. `run` may be called from any one thread at a time."""

    def __init__(self, path: Path, *, provider: str = "cpu", num_threads: int = 1) -> None:
        """Load the file. Raises ModelInvalid when it cannot be served, ProviderUnavailable without `provider`."""
        content = _read(path)
        self.num_threads = num_threads
        self.device = provider
        """onnxruntime's name of the device that the provider runs on."""
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self._no_denormals = NoDenormals()
        with self._no_denormals:  # onnxruntime leaves the thread that makes a process's first session changed
            self._session = open_session(content, provider, num_threads, self._no_denormals.works)
        self.provider: str = self._session.get_providers()[0]
        check_provider(provider, self.provider)
        self.spec: ModelSpec = parse_manifest(self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY))
        _check_graph(self._session, self.spec)
        self.on_cpu = recurrent_on_cpu(self._session)
        """Recurrent operators that the provider leaves to the CPU."""
        self._input = self.spec.input.name
        self._state_inputs = [state.input for state in self.spec.states]
        self._fetch = [self.spec.output.name, *(state.output for state in self.spec.states)]

    def rows(self, num_slots: int) -> Arena:
        """An arena of states in the form that `run` takes."""
        return Rows(self.spec.states, num_slots)

    def run(self, inputs: Array, states: Batched) -> RunOutput:
        """One run. `inputs` `(B, T, F)` or `(B, T)`; `states` as the graph has them, `(L, B, H)` each."""
        feeds: dict[str, Array] = dict(zip(self._state_inputs, states, strict=True))
        feeds[self._input] = inputs
        begin = perf_counter()
        with self._no_denormals:
            outputs, *new_states = self._session.run(self._fetch, feeds)
        return RunOutput(outputs, new_states, perf_counter() - begin)

    def measure(self, rows: int, steps: int) -> float:
        """Seconds of a run on zeros: the better of two, the first one warms memory and code up.

        Raises ModelInvalid when the outputs do not have the shapes that the manifest promises.
        """
        spec = self.spec
        x = np.zeros((rows, steps, *spec.input.step_shape), np.dtype(spec.input.dtype))
        states = self._enter([np.zeros(s.batch_shape(rows), np.float32) for s in spec.states])
        first, second = self.run(x, states), self.run(x, states)
        _check_shape(spec.output.name, first.outputs.shape, (rows, steps, *spec.output.step_shape))
        for state, shape in zip(spec.states, self._shapes(first.states), strict=True):
            _check_shape(state.output, shape, state.batch_shape(rows))
        return min(first.seconds, second.seconds)

    def _enter(self, states: list[NDArray[np.float32]]) -> Batched:
        """States as the graph has them, in the form that the arena gathers."""
        return states

    def _shapes(self, states: Batched) -> list[tuple[int, ...]]:
        """Shapes that the graph gave."""
        return [state.shape for state in states]


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ModelInvalid("The file cannot be read: it is no regular file.")
        return path.read_bytes()
    except OSError as error:
        raise ModelInvalid(f"The file cannot be read: {error.strerror}.") from error


def _check_graph(session: ort.InferenceSession, spec: ModelSpec) -> None:
    """The graph must have just the inputs and outputs that the manifest names, of these types and shapes."""
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    expected_in: dict[str, TensorSpec | StateSpec] = {spec.input.name: spec.input, **{s.input: s for s in spec.states}}
    expected_out: dict[str, TensorSpec | StateSpec] = {
        spec.output.name: spec.output,
        **{s.output: s for s in spec.states},
    }
    bounds = {BATCH: spec.max_batch_size, TIME: spec.max_chunk_size if spec.streaming else None}
    single = {axis for axis, most in bounds.items() if most == 1}
    for side, nodes, expected in (("input", inputs, expected_in), ("output", outputs, expected_out)):
        if missing := sorted(expected.keys() - nodes.keys()):
            raise ModelInvalid(f"The manifest names {side} {missing[0]!r}; the graph has {sorted(nodes)}.")
        for name, part in expected.items():
            _check_node(f"{side} {name!r}", nodes[name], part.dtype, part.shape, single)
    if extra := sorted(inputs.keys() - expected_in.keys()):
        raise ModelInvalid(f"The graph needs input {extra[0]!r}, which the manifest does not name.")


def _check_node(what: str, node: ort.NodeArg, dtype: str, shape: Shape, single: set[str]) -> None:
    found = _DTYPES.get(node.type, node.type)
    if found != dtype:
        raise ModelInvalid(f"{what}: the manifest says {dtype}, the graph {found}.")
    fits = len(node.shape) == len(shape) and all(
        not isinstance(have, int) or (have == 1 and want in single) or have == want
        for have, want in zip(node.shape, shape, strict=True)
    )
    if not fits:
        raise ModelInvalid(
            f"{what}: the manifest says {list(shape)}, the graph {node.shape}. Batch and time must be free."
        )


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ModelInvalid(f"Output {name!r} came out as {list(found)} where the manifest promises {list(expected)}.")
