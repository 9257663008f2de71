"""Sessions of onnxruntime: which provider runs them, with which options, and what of a graph it would not take."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable

import onnxruntime as ort

from service.errors import ModelInvalid, ProviderUnavailable

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
_FLUSH_BITS = {"x86_64": (1, 0x8040), "aarch64": (0, 1 << 24)}
"""Machine -> the word of glibc's `femode_t` and the bits that make denormals zero: MXCSR's FTZ and DAZ, FPCR's FZ."""


class NoDenormals:
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


def open_session(content: bytes, provider: str, num_threads: int, flush_denormals: bool) -> ort.InferenceSession:
    """Of a model. Raises ProviderUnavailable, and ModelInvalid when onnxruntime cannot read it."""
    require_provider(provider)
    options = _options(num_threads)
    # Decaying states would slow each step down. All threads of a run or none: see NoDenormals.
    options.add_session_config_entry("session.set_denormal_as_zero", str(int(flush_denormals)))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # for recurrent_on_cpu
    try:
        # from bytes: a model that keeps its data in other files is refused, whatever paths it names
        return ort.InferenceSession(content, options, providers=_providers(provider))
    except Exception as error:  # onnxruntime raises a class of its own for each cause, all unrelated
        raise ModelInvalid(f"onnxruntime cannot load the file: {_one_line(error)}") from error


def open_helper(graph: bytes, provider: str) -> ort.InferenceSession:
    """Of a graph of ours, run as it is written, beside a model on the same provider that was opened before."""
    options = _options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(graph, options, providers=_providers(provider))


def _options(num_threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings reach the operator as our own errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # cores are shared with the web server
    return options


def _providers(provider: str) -> list[str]:
    """What it cannot run is left to the CPU."""
    return [_PROVIDERS[provider]] if provider == "cpu" else [_PROVIDERS[provider], _PROVIDERS["cpu"]]


def check_provider(wanted: str, used: str) -> None:
    if used != _PROVIDERS[wanted]:
        raise ProviderUnavailable(
            f"CAROUSEL_PROVIDER={wanted} was asked for, but onnxruntime fell back to {used}: no usable GPU, driver, "
            "CUDA or cuDNN library was found. Look at its message above, or set CAROUSEL_PROVIDER=cpu."
        )


def recurrent_on_cpu(session: ort.InferenceSession) -> list[str]:
    """Recurrent operators that the CPU runs because the provider asked for cannot; onnxruntime says nothing of it.

    CUDA's LSTM, GRU and RNN are cuDNN's: without peepholes, clip, `input_forget`, other activations than the usual
    ones, and a GRU that resets before the product (`linear_before_reset=0`); see RNNNeedFallbackToCPU in
    https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/providers/cuda/cuda_execution_provider.cc.
    """
    cpu = _PROVIDERS["cpu"]
    if session.get_providers()[0] == cpu or not hasattr(session, "get_provider_graph_assignment_info"):
        return []  # onnxruntime before 1.24 cannot tell
    parts = session.get_provider_graph_assignment_info()
    return sorted({n.op_type for part in parts if part.ep_name == cpu for n in part.get_nodes()} & _RECURRENT)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
