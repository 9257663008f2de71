"""What onnxruntime does not say by itself: which operators it left to the CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from service.engine.sessions import open_session, recurrent_on_cpu
from tests.service import onnx_models


class OnCuda:
    """A session of the CPU that says it is CUDA's: all of its operators were left to the CPU."""

    def __init__(self, path: Path) -> None:
        self._session = open_session(path.read_bytes(), "cpu", 1, False)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> Any:
        return self._session.get_provider_graph_assignment_info()


def test_recurrent_operators_that_cuda_leaves_to_the_cpu_are_known(tmp_path: Path) -> None:
    lstm, gru, sums = (make(tmp_path) for make in (onnx_models.lstm, onnx_models.gru, onnx_models.running_sum))
    assert recurrent_on_cpu(OnCuda(lstm)) == ["LSTM"]
    assert recurrent_on_cpu(OnCuda(gru)) == ["GRU"]
    assert recurrent_on_cpu(OnCuda(sums)) == [], "what else runs there is no concern"
    assert recurrent_on_cpu(open_session(lstm.read_bytes(), "cpu", 1, False)) == [], "it was asked for"
    assert recurrent_on_cpu(SimpleNamespace(get_providers=OnCuda(lstm).get_providers)) == [], "too old to tell"
