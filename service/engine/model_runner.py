"""Runs the ONNX file: the only module that touches onnxruntime."""

from __future__ import annotations

import ctypes
import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.engine.request import Array
from service.errors import ModelInvalid, ProviderUnavailable
from service.model_spec import BATCH, METADATA_KEY, TIME, ModelSpec, Shape, StateSpec, TensorSpec, parse_manifest

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}
_FLUSH_BITS = {"x86_64": (1, 0x8040), "aarch64": (0, 1 << 24)}
"""Machine -> the word of glibc's `femode_t` and the bits that make denormals zero: MXCSR's FTZ and DAZ, FPCR's FZ."""


@dataclass(slots=True)
class RunOutput:
    """`outputs` `(B, T, ...)` float32; `states` batched as the graph has them, `(L, B, H)`."""

    outputs: NDArray[np.float32]
    states: list[NDArray[np.float32]]
    seconds: float


class ModelRunner:
    """One loaded model. `run` may be called from any one thread at a time."""

    def __init__(self, path: Path, *, provider: str = "cpu", num_threads: int = 1) -> None:
        """Load the file. Raises ModelInvalid when it cannot be served, ProviderUnavailable without `provider`."""
        content = _read(path)
        self.num_threads = num_threads
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self._no_denormals = _NoDenormals()
        with self._no_denormals:  # onnxruntime leaves the thread that makes a process's first session changed
            self._session = _open_session(content, provider, num_threads, self._no_denormals.works)
        self.provider: str = self._session.get_providers()[0]
        _check_provider(provider, self.provider)
        self.spec: ModelSpec = parse_manifest(self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY))
        _check_graph(self._session, self.spec)
        self._input = self.spec.input.name
        self._state_inputs = [state.input for state in self.spec.states]
        self._fetch = [self.spec.output.name, *(state.output for state in self.spec.states)]

    def run(self, inputs: Array, states: Sequence[NDArray[np.float32]]) -> RunOutput:
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
        states = [np.zeros(s.batch_shape(rows), np.float32) for s in spec.states]
        first, second = self.run(x, states), self.run(x, states)
        _check_shape(spec.output.name, first.outputs.shape, (rows, steps, *spec.output.step_shape))
        for state, after in zip(spec.states, first.states, strict=True):
            _check_shape(state.output, after.shape, state.batch_shape(rows))
        return min(first.seconds, second.seconds)


class _NoDenormals:
    """While it is entered, numbers below 1.2e-38 count as zero on this thread. Entered by one thread at a time.

    onnxruntime's own option reaches the threads of its pool, and the thread that makes a process's first session; not
    the one that calls `run`. Rows would be flushed or not by the thread that they fall to, and so differ.
    """

    def __init__(self) -> None:
        libc = ctypes.PyDLL(None)  # PyDLL keeps the GIL: these calls are shorter than giving it up
        word, bits = _FLUSH_BITS.get(platform.machine(), (0, 0))
        self.works = bool(bits) and hasattr(libc, "fegetmode")
        self._modes = (ctypes.c_uint32 * 2)(), (ctypes.c_uint32 * 2)()
        self._usual, self._flushing = (ctypes.c_void_p(ctypes.addressof(mode)) for mode in self._modes)
        self._get: Callable[[ctypes.c_void_p], object] = libc.fegetmode if self.works else _nothing
        self._set: Callable[[ctypes.c_void_p], object] = libc.fesetmode if self.works else _nothing
        self._get(self._flushing)
        self._modes[1][word] |= bits

    def __enter__(self) -> None:
        self._get(self._usual)
        self._set(self._flushing)

    def __exit__(self, *_: object) -> None:
        self._set(self._usual)


def _nothing(mode: object) -> None:
    """Where the processor or the C library is another, denormals stay, on every thread."""


def require_provider(provider: str) -> None:
    """Raises ProviderUnavailable when onnxruntime was built without `provider`."""
    wanted, present = _PROVIDERS[provider], ort.get_available_providers()
    if wanted not in present:
        raise ProviderUnavailable(
            f"CAROUSEL_PROVIDER={provider} needs onnxruntime's {wanted}; the installed onnxruntime has "
            f"{', '.join(present)}. Install the GPU build with `make install GPU=1`, or set CAROUSEL_PROVIDER=cpu."
        )


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ModelInvalid("The file cannot be read: it is no regular file.")
        return path.read_bytes()
    except OSError as error:
        raise ModelInvalid(f"The file cannot be read: {error.strerror}.") from error


def _open_session(content: bytes, provider: str, num_threads: int, flush_denormals: bool) -> ort.InferenceSession:
    require_provider(provider)
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings reach the operator as our own errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # cores are shared with the web server
    # Decaying states would slow each step down. All threads of a run or none: see _NoDenormals.
    options.add_session_config_entry("session.set_denormal_as_zero", str(int(flush_denormals)))
    providers = [_PROVIDERS[provider]] if provider == "cpu" else [_PROVIDERS[provider], _PROVIDERS["cpu"]]
    try:
        # from bytes: a model that keeps its data in other files is refused, whatever paths it names
        return ort.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime raises a class of its own for each cause, all unrelated
        raise ModelInvalid(f"onnxruntime cannot load the file: {_one_line(error)}") from error


def _check_provider(wanted: str, used: str) -> None:
    if used != _PROVIDERS[wanted]:
        raise ProviderUnavailable(
            f"CAROUSEL_PROVIDER={wanted} was asked for, but onnxruntime fell back to {used}: no usable GPU, driver, "
            "CUDA or cuDNN library was found. Look at its message above, or set CAROUSEL_PROVIDER=cpu."
        )


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
