"""What `python -m models` leaves behind and says."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from models import checkpoint, tasks
from models.__main__ import app
from models.predict import predictor
from tests.models.small_tasks import ragged

run = CliRunner()


@pytest.fixture
def small_task(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "ragged", ragged(max_epochs=2))
    before = torch.get_num_threads()
    yield tasks.TASKS["ragged"]
    torch.set_num_threads(before)


def test_training_leaves_checkpoint_metrics_curve_and_card(small_task, tmp_path):
    result = run.invoke(app, ["train", "ragged", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    model, info = checkpoint.load(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    card = (tmp_path / "MODEL_CARD.md").read_text()

    assert small_task.evaluate(predictor(model)) == metrics["test"] == info["metrics"][0]["value"]
    assert info["task_name"] == "ragged"
    assert info["data"] == {"name": "generated", "source": "tests", "licence": "none"}
    assert [row["epoch"] for row in metrics["history"]] == [1, 2]
    assert f"**{metrics['test']:.4g}**" in card
    assert "licence: none" in card
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.pt")) + list(tmp_path.glob("*.pkl"))


def test_resume_after_the_end_gives_the_same_figure(small_task, tmp_path):
    run.invoke(app, ["train", "ragged", "--out", str(tmp_path)])
    first = json.loads((tmp_path / "metrics.json").read_text())
    assert run.invoke(app, ["train", "ragged", "--out", str(tmp_path), "--resume"]).exit_code == 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "vowel"], "no task 'vowel'; there are vowels"),
        (["train", "vowels", "--out", "nowhere", "--resume"], "nothing to resume"),
        (["train", "vowels", "--out", __file__], "cannot be written to"),
    ],
)
def test_a_wrong_call_is_answered_in_words(arguments, message):
    result = run.invoke(app, arguments)
    assert result.exit_code == 2
    words = " ".join(result.output.replace("│", " ").split())
    assert message in words


def test_tasks_lists_every_task():
    output = run.invoke(app, ["tasks"], env={"COLUMNS": "200"}).output
    assert all(name in output for name in [*tasks.TASKS, "`train adding`"])


def test_a_family_trains_each_of_its_tasks_in_a_folder_of_its_own(monkeypatch, tmp_path):
    few = tuple(replace(ragged(max_epochs=1), name=f"ragged-{cell}") for cell in ("a", "b"))
    monkeypatch.setitem(tasks.FAMILIES, "ragged", few)
    monkeypatch.chdir(tmp_path)
    refused = run.invoke(app, ["train", "ragged", "--out", "one"])
    assert refused.exit_code == 2
    assert run.invoke(app, ["train", "ragged"]).exit_code == 0
    assert sorted(folder.name for folder in (tmp_path / "runs").iterdir()) == ["ragged-a", "ragged-b"]
    assert [task.name for task in tasks.find("adding")] == [
        "adding-rnn",
        "adding-lstm",
        "adding-gru",
        "adding-gru-cho",
    ]
