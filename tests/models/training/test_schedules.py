"""Cosine and warm-up of the learning rate, and the number of threads."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pyops.models.errors import TrainError
from pyops.models.recipe import Recipe
from pyops.models.training.config import TrainConfig
from pyops.models.training.train import new_run, train

from tests.suite.training import run


def rates(folder: Path, **options) -> list[float]:
    """The learning rate of every step of a run of 3 epochs of 5 steps."""
    config = TrainConfig(
        "softmax_regression", epochs=3, batch_size=290, lr=0.5, output=folder, quiet=True, **options
    )
    trainer = new_run(config).trainer
    used, step = [], trainer.updater.step

    def watched() -> None:
        used.append(trainer.updater.lr)
        step()

    trainer.updater.step = watched
    for _ in range(3):
        trainer.train_epoch()
    assert len(used) == 15
    return used


def test_a_cosine_falls_to_zero_at_the_end(tmp_path: Path) -> None:
    expected = [0.5 * (1 + math.cos(math.pi * step / 15)) / 2 for step in range(15)]
    assert rates(tmp_path, schedule="cosine") == pytest.approx(expected)


def test_a_warm_up_rises_to_the_rate(tmp_path: Path) -> None:
    rising = [0.5 * (step + 1) / 6 for step in range(5)]
    assert rates(tmp_path, warm_up=1.0) == pytest.approx([*rising, *[0.5] * 10])
    falling = [0.5 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert rates(tmp_path, schedule="cosine", warm_up=1.0) == pytest.approx([*rising, *falling])


def test_a_resumed_run_goes_on_along_the_cosine(tmp_path: Path) -> None:
    options = {"network": "softmax_regression", "epochs": 2, "schedule": "cosine", "warm_up": 0.5}
    whole = run(tmp_path / "whole", **options)
    run(tmp_path / "parts", **options, max_steps=30)
    rest = run(tmp_path / "parts", **options, resume=True)
    assert rest["step_losses"] == whole["step_losses"]
    assert rest["history"]["lr"] == whole["history"]["lr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"warm_up": -1.0}, "warm_up must be a number of at least 0"),
        ({"schedule": "cosine", "decay_every": 2}, "schedule and warm_up exclude decay_every"),
        ({"warm_up": 1.0, "cuda_graph": True}, "cuda_graph excludes schedule and warm_up"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(TrainError) as caught:
        Recipe(num_epochs=1, lr=0.1, batch_size=1, **options).check()
    assert message in str(caught.value)


def test_training_takes_the_threads_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives them back."""
    before = torch.get_num_threads()
    counts = []
    monkeypatch.setattr(
        "pyops.models.training.train._train", lambda *_: counts.append(torch.get_num_threads())
    )
    train(TrainConfig("mlp", threads=1, output=tmp_path))
    train(TrainConfig("mlp", output=tmp_path))
    assert counts == [1, before]
    monkeypatch.undo()
    with pytest.raises(TrainError, match="threads must be at least 1, got 0"):
        train(TrainConfig("mlp", threads=0, output=tmp_path))
    assert torch.get_num_threads() == before
