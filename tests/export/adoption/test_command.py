"""The words of `python -m export adopt`, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from export.adoption import options
from export.adoption.command import app
from service.repository import scan
from tests.export.adoption.foreign import content, node, one_step


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_words_become_what_they_mean(tmp_path: Path):
    np.save(tmp_path / "w.npy", np.arange(3))
    assert options.texts("--state", ["h=hn", "lstm/c:0=out:0"]) == {"h": "hn", "lstm/c:0": "out:0"}
    values = options.values("--constant", ["sr=16000", "rate=-0.5", "on=true", f"w=@{tmp_path / 'w.npy'}"])
    assert [(value.dtype.kind, value.tolist()) for value in values.values()] == [
        ("i", 16000),
        ("f", -0.5),
        ("b", True),
        ("i", [0, 1, 2]),
    ]
    assert options.counts("--context", ["input:64", "x=3", "a:0:5"]) == {"input": 64, "x": 3, "a:0": 5}
    assert options.axes("--batch-axis", ["x=1", "h=none"]) == {"x": 1, "h": None}
    assert options.shapes("--shape", ["x=batch,time,40"]) == {"x": ("batch", "time", 40)}
    assert options.texts("--state", None) == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--state", "h"], "--state h: expected IN=OUT"),
        (["--constant", "sr=fast"], "--constant sr=fast: expected a number, true, false, or @FILE.npy"),
        (["--constant", "sr=@nowhere.npy"], "nowhere.npy is no .npy file of numbers"),
        (["--context", "x:-3"], "--context x: expected a count, got '-3'"),
        (["--shape", "x=rows,40"], "--shape x=rows,40: expected `batch`, `time` and sizes"),
        (["--shape", "z=batch,40"], "there is no input 'z'"),
        (["--output", "z"], "there is no output 'z'; the file has 'y', 'hn'"),
        (["--data", "z"], "--data z: the file has no tensor of that name"),
        (["--constant", "z=1"], "--constant z: there is no such input"),
        (["--expect", "y.npy"], "--expect needs the inputs too: --sample X.npy"),
        (["--lift"], "--lift: the graph has no RNN, GRU or LSTM"),
        (["--name", "../elsewhere"], "'../elsewhere' is no model name"),
    ],
)
def test_wishes_that_do_not_fit_are_told_and_nothing_is_published(tmp_path: Path, arguments: list[str], words: str):
    (tmp_path / "model.onnx").write_bytes(one_step())
    repository = tmp_path / "repository"
    result = run(tmp_path / "model.onnx", "--name", "m", *arguments, repository)
    assert result.exit_code == 1
    assert words in result.output
    assert "nothing was published" in result.output
    assert not repository.exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    result = run(tmp_path / "none.onnx", "--name", "m", tmp_path)
    assert "none.onnx: there is no such file" in result.output


def test_what_a_file_calls_its_tensors_is_no_markup(tmp_path: Path):
    nodes = [node("Add", "[red]x[/red] h", "hn"), node("Identity", "hn", "[bold]y")]
    data = content(nodes, ["[red]x[/red] f batch,2", "h f batch,2"], ["[bold]y f batch,2", "hn f batch,2"])
    (tmp_path / "model.onnx").write_bytes(data)
    result = run(tmp_path / "model.onnx", "--name", "m", "--context", "[red]x[/red]:0", tmp_path / "repository")
    assert result.exit_code == 0, result.output
    assert "[red]x[/red]" in result.output
    assert "[bold]y" in result.output


def test_each_adoption_is_the_next_version(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(one_step())
    for _ in range(2):
        result = run(tmp_path / "model.onnx", "--name", "m", tmp_path / "repository")
        assert result.exit_code == 0, result.output
    assert "m/2/model.onnx" in result.output.replace("\n", "")
    assert [(file.name, file.version) for file in scan(tmp_path / "repository")] == [("m", 1), ("m", 2)]


def test_expected_outputs_prove_a_stream_or_refuse_it(tmp_path: Path):
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    (tmp_path / "model.onnx").write_bytes(one_step())
    np.save(tmp_path / "x.npy", x)
    for expected, exit_code in ((x.cumsum(axis=0), 0), (x, 1)):
        np.save(tmp_path / "y.npy", expected)
        proof = ("--sample", tmp_path / "x.npy", "--expect", tmp_path / "y.npy")
        result = run(tmp_path / "model.onnx", "--name", "m", *proof, tmp_path / "repository")
        assert result.exit_code == exit_code, result.output
    assert "differs from the expected outputs" in result.output
