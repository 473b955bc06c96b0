"""The practices as options of the trainer: each changes training as its formula says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pyops.models.data.load import load_data
from pyops.models.recipe import Recipe
from pyops.models.training import plots
from pyops.models.training.optimization import Updater
from torch import nn

from tests.suite import training
from tests.suite.training import CPU, trainer_of

pytestmark = pytest.mark.usefixtures("without_pictures")


def run(output: Path, network: str = "softmax_regression", **options) -> dict:
    return training.run(output, network, **{"lr": 0.1, **options})


def weights_after(steps: int, **options) -> list[torch.Tensor]:
    """Parameters of a small MLP after some steps on the same batches."""
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=20, **options)
    trainer = trainer_of(replace(recipe, options={"num_hiddens": 8}))
    for i in range(steps):
        trainer._step(*trainer.data.train_batch(torch.arange(20 * i, 20 * i + 20)))
    return [parameter.detach() for parameter in trainer.net.parameters()]


# ---- one update


def updated(recipe: Recipe, gradients: list[float], start: float = 1.0) -> list[float]:
    """Values of a single weight after each of some updates with given gradients."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, start)
    updater = Updater(layer, recipe, CPU)
    values = []
    for gradient in gradients:
        updater.zero_grad()
        updater.backward(layer(torch.tensor([[gradient]])).sum())
        updater.step()
        values.append(layer.weight.item())
    return values


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.8, 0.4]),
        ({"momentum": 0.5}, [0.8, 0.3]),  # velocities 2, 0.5 * 2 + 4
        ({"momentum": 0.5, "nesterov": True}, [0.7, 0.05]),  # 2 + 0.5 * 2, 4 + 0.5 * 5
        ({"weight_decay": 0.5}, [0.75, 0.3125]),  # gradients 2 + 0.5 * 1, 4 + 0.5 * 0.75
        ({"l1": 1.0}, [0.7, 0.2]),  # gradients 2 + 1, 4 + 1
        ({"clip_norm": 3.0}, [0.8, 0.5]),  # gradients 2, 3
        ({"l1": 1.0, "clip_norm": 2.5}, [0.75, 0.5]),  # the penalty is clipped, too
    ],
    ids=str,
)
def test_updates_follow_their_formula(options, expected):
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=1, **options)
    assert updated(recipe, [2.0, 4.0]) == pytest.approx(expected, rel=1e-5)


def test_l1_pulls_towards_zero_from_both_sides():
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=1, l1=1.0)
    assert updated(recipe, [0.0], start=-1.0) == pytest.approx([-0.9])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_torchs(name):
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=1, optimizer=name, weight_decay=0.5)
    parameter = nn.Parameter(torch.ones(1))
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]([parameter], 0.1, weight_decay=0.5)
    expected = []
    for gradient in (2.0, 4.0):
        parameter.grad = torch.tensor([gradient])
        plain.step()
        expected.append(parameter.item())
    assert updated(recipe, [2.0, 4.0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "losses", "rates"),
    [
        ({}, [1, 1, 1], [1, 1, 1]),
        ({"decay_every": 2, "lr_decay": 0.5}, [1, 1, 1, 1], [1, 0.5, 0.5, 0.25]),
        ({"decay_patience": 1, "lr_decay": 0.5}, [1, 2, 2, 0.5, 2], [1, 1, 0.5, 0.5, 0.5]),
        ({"decay_patience": 0, "lr_decay": 0.1}, [1, 2, 2], [1, 0.1, 0.01]),
    ],
)
def test_learning_rate_decay(options, losses, rates):
    updater = Updater(nn.Linear(1, 1), Recipe(num_epochs=1, lr=1.0, batch_size=1, **options), CPU)
    found = []
    updater.optimizer.step()
    for loss in losses:
        updater.end_epoch(loss)
        found.append(updater.lr)
    assert found == pytest.approx(rates)


# ---- a step


@pytest.mark.parametrize("parts", [2, 3, 20])
def test_accumulation_takes_the_same_step(parts):
    """The batch of 20 in 2 equal parts, in 3 unequal ones, and one by one."""
    whole, accumulated = weights_after(3), weights_after(3, accumulate=parts)
    for ours, expected in zip(accumulated, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_amp_computes_in_16_bits_and_learns(tmp_path, dtype):
    plain, mixed = run(tmp_path / "plain", epochs=5), run(tmp_path / "amp", epochs=5, amp=dtype)
    assert mixed["step_losses"] != plain["step_losses"]
    assert mixed["step_losses"] == pytest.approx(plain["step_losses"], abs=0.1)
    assert mixed["test_accuracy"] == pytest.approx(plain["test_accuracy"], abs=0.02)


def test_compile_trains_the_same():
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=20)
    losses = {}
    for compiled in (False, True):
        trainer = trainer_of(replace(recipe, compile=compiled))
        assert isinstance(trainer._forward, torch._dynamo.OptimizedModule) == compiled
        batch = trainer.data.train_batch(torch.arange(20))
        losses[compiled] = [trainer._step(*batch)[0].item() for _ in range(3)]
    assert losses[True] == pytest.approx(losses[False], abs=1e-5)


@pytest.mark.parametrize(
    ("rule", "std"),
    [("normal", 0.01), ("he", (2 / 64) ** 0.5), ("xavier", (2 / (64 + 256)) ** 0.5), ("constant", 0.0)],
)
def test_init_rules(rule, std):
    net = trainer_of(Recipe(1, 0.1, 20, init=rule)).net
    assert net[1].weight.std().item() == pytest.approx(std, rel=0.05)
    assert net[1].weight.mean().item() == pytest.approx(1.0 if rule == "constant" else 0.0, abs=0.01)
    assert not net[1].bias.any()


# ---- validation and early stopping


def test_validation_part_is_taken_from_the_training_part():
    data = load_data("digits")
    split = data.with_validation(0.2, seed=3)
    assert len(split.validation[1]) == 287
    assert len(split.train_targets) == 1437 - 287
    together = torch.cat([split.train_inputs, split.validation[0]])
    assert torch.equal(together.sum(0), data.train_inputs.sum(0))
    assert torch.equal(split.test_inputs, data.test_inputs)
    assert torch.equal(data.with_validation(0.2, seed=3).validation[1], split.validation[1])
    assert not torch.equal(data.with_validation(0.2, seed=4).validation[1], split.validation[1])


def test_validation_is_in_the_history(tmp_path):
    metrics = run(tmp_path, epochs=3, validation=0.25)
    for name in ("validation_loss", "validation_accuracy"):
        assert len(metrics["history"][name]) == 3
        assert metrics[name] == metrics["history"][name][-1]
    assert metrics["validation_accuracy"] > 0.8


def test_early_stopping_keeps_the_best_weights(tmp_path):
    """A learning rate so large that the loss jumps about."""
    metrics = run(tmp_path, epochs=60, validation=0.3, early_stop=3, lr=8.0)
    losses = metrics["history"]["validation_loss"]
    best = losses.index(min(losses)) + 1
    assert metrics["epochs"] == len(losses) == best + 3 < 60
    assert metrics["best_epoch"] == best
    assert metrics["test_accuracy"] == metrics["history"]["test_accuracy"][best - 1]
    assert metrics["test_loss"] == pytest.approx(metrics["history"]["test_loss"][best - 1], rel=1e-12)


def test_curves_tell_of_the_epoch_that_is_kept(tmp_path, monkeypatch):
    """Before, the numbers were of the best epoch, and the picture of the last."""
    drawn = []
    monkeypatch.setattr(plots.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    history = {"epoch": [1, 2, 3], "train_loss": [3.0, 0.05, 0.02], "test_loss": [2.0, 0.25, 0.5]}
    steps = [3.0, 0.05, 0.02]
    for best in (2, None):
        plots.save_curves(tmp_path / "curves.png", "a run", history, steps, {"loss": "loss"}, best)
    kept, last = (figure.axes[0] for figure in drawn)
    assert kept.get_title() == "kept: train 0.05, test 0.25"
    assert "kept: epoch 2" in [text.get_text() for text in kept.get_legend().get_texts()]
    assert last.get_title() == "final: train 0.02, test 0.5"
    assert kept.get_yscale() == last.get_yscale() == "log"  # of losses that span decades


def test_folds_are_disjoint_and_cover_everything():
    data = load_data("digits")
    folds = [data.fold(i, 5) for i in range(5)]
    sizes = [len(fold.validation[1]) for fold in folds]
    assert sum(sizes) == 1437
    assert max(sizes) - min(sizes) <= 1
    held_out = torch.cat([fold.validation[0] for fold in folds])
    assert torch.equal(held_out.sum(0), data.train_inputs.sum(0))
    assert all(len(fold.train_targets) + size == 1437 for fold, size in zip(folds, sizes, strict=True))


def test_cross_validation(tmp_path):
    summary = run(tmp_path, folds=3, epochs=2)
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    single = [json.loads((tmp_path / f"fold-{i}" / "metrics.json").read_text()) for i in (1, 2, 3)]
    accuracies = torch.tensor([metrics["validation_accuracy"] for metrics in single], dtype=torch.float64)
    assert len(set(accuracies.tolist())) > 1
    assert summary["validation_accuracy"] == pytest.approx(accuracies.mean().item())
    assert summary["validation_accuracy_std"] == pytest.approx(accuracies.std().item())
