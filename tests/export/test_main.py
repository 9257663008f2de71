"""`python -m export` from end to end."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import export.command as command
from export.session import Session
from export.verify import Check, Report
from models import checkpoint
from models.predict import predictor
from models.tasks import TASKS
from service.repository import scan
from tests.export.make import INFO, make_feed, make_model

TASK = TASKS["vowels"]


def save_vowels(folder, accuracy=None):
    model = make_model(scaled=False, **{**TASK.model, "hidden_size": 8})
    value = TASK.evaluate(predictor(model)) if accuracy is None else accuracy
    figure = {"name": TASK.metric_name, "value": value, "split": "test", "unit": "%", "better": TASK.better}
    info = {"task_name": "vowels", "task": TASK.kind, "output": dict(TASK.output), "metrics": [figure]}
    checkpoint.save(folder, model, info)
    return model


def run(*arguments):
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])


def test_a_checkpoint_becomes_a_served_model(tmp_path):
    model = save_vowels(tmp_path / "run")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "export", tmp_path / "run", tmp_path / "repository"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    steps = [line.split()[0] for line in lines if line.endswith(" s)")]
    assert steps == ["convert", "verify", "publish"]
    assert "6 of 6 checks passed" in result.stdout
    (file,) = scan(tmp_path / "repository")
    assert (file.name, file.version) == ("vowels", 1)
    x, states = make_feed(model, 2, 9)
    with torch.no_grad():
        y = model(torch.from_numpy(x), *map(torch.from_numpy, states))[0].numpy()
    np.testing.assert_allclose(Session(file.path.read_bytes()).run(x, states)[0], y, rtol=0, atol=1e-5)


def test_a_figure_that_is_not_the_files_publishes_nothing(tmp_path):
    save_vowels(tmp_path / "run", accuracy=99.9)
    result = run(tmp_path / "run", tmp_path / "repository")
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert "nothing was published" in result.output
    assert not (tmp_path / "repository").exists()


def test_a_failed_check_publishes_nothing(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "run", make_model(cell="gru"), INFO)
    bad = Report((Check("batched == alone", "", 1e-9, 0.0),))
    monkeypatch.setattr(command, "verify", lambda *arguments: bad)
    assert run(tmp_path / "run", tmp_path / "repository").exit_code == 1
    assert not (tmp_path / "repository").exists()


def test_the_name_is_the_one_asked_for_or_the_folders(tmp_path):
    checkpoint.save(tmp_path / "my-run", make_model(cell="gru"), INFO)
    for options in ([], ["--name", "other"], ["--name", "other"]):
        assert run(tmp_path / "my-run", tmp_path / "repository", *options).exit_code == 0
    found = [(file.name, file.version) for file in scan(tmp_path / "repository")]
    assert found == [("my-run", 1), ("other", 1), ("other", 2)]


@pytest.mark.parametrize(
    ("folder", "repository", "options", "says"),
    [
        ("nothing", "repository", [], "not a checkpoint"),
        ("run", "file", [], "cannot write to"),
        ("run", "repository", ["--name", "a/b"], "no model name"),
        ("no-task", "repository", [], "no 'task'"),
    ],
)
def test_an_error_is_one_line_and_writes_nothing(tmp_path, folder, repository, options, says):
    checkpoint.save(tmp_path / "run", make_model(cell="gru"), INFO)
    checkpoint.save(tmp_path / "no-task", make_model(cell="gru"), {})
    (tmp_path / "file").write_text("")
    result = run(tmp_path / folder, tmp_path / repository, *options)
    assert result.exit_code == 1
    assert says in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "repository").exists()
