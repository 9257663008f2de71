from __future__ import annotations

from pathlib import Path

import pytest

from service import threads
from service.engine.model_runner import ModelRunner
from service.settings import Settings
from tests.service import onnx_models

NAME = "sum"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(threads, "cpu_quota", lambda: 4)
    onnx_models.running_sum(tmp_path, NAME)
    return tmp_path / NAME / "1" / "model.onnx"


def test_a_short_run_keeps_to_one_thread(path: Path) -> None:
    assert threads.open_runner(path, Settings()).num_threads == 1


def test_what_the_operator_says_is_done(path: Path) -> None:
    assert threads.open_runner(path, Settings(intra_op_threads=3)).num_threads == 3


@pytest.mark.parametrize(("together", "expected"), [(0.003, 4), (0.0049, 1), (0.02, 1)])
def test_a_long_run_has_all_threads_where_they_pay(
    path: Path, monkeypatch: pytest.MonkeyPatch, together: float, expected: int
) -> None:
    monkeypatch.setattr(ModelRunner, "measure", lambda self, rows, steps: 0.005 if self.num_threads == 1 else together)
    assert threads.open_runner(path, Settings()).num_threads == expected
