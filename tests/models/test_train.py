"""The training loop: it learns, stops, and after a kill goes on bit for bit."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import snapshot
from models.tasks.task import Recipe, Split
from models.train import Trainer, learning_rate
from tests.models.small_tasks import TASKS, ragged, stream

REPOSITORY_ROOT = Path(__file__).parents[2]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", TASKS)
def test_a_killed_run_resumes_bit_for_bit(name, tmp_path):
    whole = Trainer(TASKS[name](), tmp_path / "whole")
    whole.run()
    fatal_step = whole.batches_per_epoch + 5  # within the second epoch
    child = [sys.executable, "-m", "tests.models.small_tasks", name, str(tmp_path / "cut"), str(fatal_step)]
    assert subprocess.run(child, cwd=REPOSITORY_ROOT, check=False).returncode == -signal.SIGKILL

    resumed = Trainer(TASKS[name](), tmp_path / "cut", resume=True)
    assert resumed.progress.epoch == 1
    assert 0 < resumed.progress.batch < 5
    resumed.run()

    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(snapshot.read(tmp_path / "cut").model, snapshot.read(tmp_path / "whole").model)
    assert resumed.progress.history == whole.progress.history


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("step", [1, 7, 11])
def test_resuming_loses_nothing_at_any_step(name, step, tmp_path):
    class Stop(Exception):
        pass

    def stop(trainer, loss):
        if trainer.progress.step == step:
            trainer.save()
            raise Stop

    whole = Trainer(TASKS[name](max_epochs=2), tmp_path / "whole")
    whole.run()
    with pytest.raises(Stop):
        Trainer(TASKS[name](max_epochs=2), tmp_path / "cut").run(stop)
    resumed = Trainer(TASKS[name](max_epochs=2), tmp_path / "cut", resume=True)
    assert resumed.progress.step == step
    assert same(resumed.run().state_dict(), whole.model.state_dict())


def test_a_finished_run_resumes_to_its_result_without_training_on(tmp_path):
    first = Trainer(ragged(), tmp_path)
    weights = first.run().state_dict()
    again = Trainer(ragged(), tmp_path, resume=True)
    updates = []
    again.run(lambda trainer, loss: updates.append(loss))
    assert updates == []
    assert same(again.model.state_dict(), weights)


def test_resuming_what_was_never_started_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume; train without --resume first"):
        Trainer(ragged(), tmp_path, resume=True)


def test_resuming_with_another_recipe_is_refused(tmp_path):
    Trainer(ragged(max_epochs=1), tmp_path).run()
    with pytest.raises(ValueError, match="another task, model or recipe"):
        Trainer(ragged(max_epochs=1, learning_rate=0.5), tmp_path, resume=True)


def test_the_state_carried_between_chunks_matters(tmp_path):
    """Every second token before lies beyond a cut: with no state carried the loss stays above ln(5) / 2 = 0.8."""
    trainer = Trainer(stream(max_epochs=15, bptt_steps=2, snapshot_steps=10_000), tmp_path)
    trainer.run()
    assert trainer.progress.history[-1]["train_loss"] < 0.1


def test_truncation_stops_gradients_but_not_values(tmp_path):
    trainer = Trainer(stream(max_epochs=1), tmp_path)
    states = []
    trainer.run(lambda trainer, loss: states.append(trainer.state))
    assert not any(tensor.requires_grad for state in states for tensor in state)
    assert all(tensor.abs().sum() > 0 for state in states for tensor in state)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    first, again, other = (Trainer(ragged(seed=seed, max_epochs=1), tmp_path).run().state_dict() for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


def test_training_stops_when_patience_runs_out_and_keeps_the_best_weights(tmp_path):
    figures = iter([3.0, 1.0, 2.0, 2.0, 0.0])
    task = replace(ragged(max_epochs=5, patience=2), metric=lambda inputs, outputs, targets: next(figures))
    trainer = Trainer(task, tmp_path)
    weights = []
    trainer.run(lambda trainer, loss: weights.append({k: v.clone() for k, v in trainer.model.state_dict().items()}))
    assert [row["valid_metric"] for row in trainer.progress.history] == [3.0, 1.0, 2.0, 2.0]
    assert trainer.progress.best_epoch == 2
    assert same(trainer.model.state_dict(), weights[2 * trainer.batches_per_epoch - 1])


def test_gradients_are_clipped(tmp_path):
    trainer = Trainer(ragged(max_epochs=1, clip_norm=1e-3), tmp_path)
    norms = []

    def measure(trainer, loss):
        gradients = [parameter.grad.flatten() for parameter in trainer.model.parameters()]
        norms.append(torch.cat(gradients).norm().item())

    trainer.run(measure)
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-2)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_hundredth():
    recipe = Recipe(max_epochs=1, batch_size=1, learning_rate=0.5, warmup_steps=10)
    rates = [learning_rate(step, 110, recipe) for step in range(111)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[9] == rates[10] == 0.5
    assert rates[60] == pytest.approx(0.5 * (0.01 + 0.99 / 2))
    assert rates[110] == pytest.approx(0.005)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_scales_come_from_the_training_split(tmp_path):
    trainer = Trainer(ragged(), tmp_path)
    inputs = torch.cat([torch.from_numpy(x) for x in trainer.task.train_split(0).inputs])
    torch.testing.assert_close(trainer.model.input_mean, inputs.mean(dim=0))
    torch.testing.assert_close(trainer.model.input_std, inputs.std(dim=0, correction=0))


def test_a_loss_that_is_no_number_stops_the_run_in_words(tmp_path):
    task = ragged()
    broken = Split([np.full((3, 2), np.nan, dtype=np.float32)] * 4, [np.ones((3, 1), dtype=np.float32)] * 4)
    trainer = Trainer(replace(task, train_split=lambda epoch: broken, normalise_inputs=False), tmp_path)
    with pytest.raises(FloatingPointError, match="the loss is nan at update 1: lower the learning rate"):
        trainer.run()
