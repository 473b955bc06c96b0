"""Networks of every kind learn their data, by their own recipes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pyops.models.data.load import load_data
from pyops.models.tasks import PerceptronLoss
from torch import nn

from pyops import models
from tests.suite.training import run, trainer_of


def test_linear_regression_recovers_the_parameters(tmp_path):
    metrics = run(tmp_path, "linear_regression", lr=None, batch_size=None)
    assert metrics["parameter_error"] < 5e-3
    assert metrics["test_loss"] == pytest.approx(1e-4, rel=0.3)  # the noise is left
    assert "test_accuracy" not in metrics
    names = {path.name for path in tmp_path.iterdir()}
    assert "curves.png" in names
    assert "predictions.png" not in names


def test_xor_is_for_the_mlp_and_not_for_the_perceptron(tmp_path):
    line = run(tmp_path / "perceptron", "perceptron", lr=None, batch_size=None)
    assert max(line["history"]["test_accuracy"]) <= 0.75
    layers = run(tmp_path / "mlp", "mlp", data="xor", lr=None, batch_size=None)
    assert layers["test_accuracy"] == 1.0


def test_perceptron_separates_what_a_line_can():
    data = replace(load_data("xor"), train_targets=torch.tensor([0, 0, 0, 1]))
    data = replace(data, test_targets=data.train_targets)
    trainer = trainer_of(models.get_network("perceptron").recipe, "perceptron", data=data)
    for _ in range(20):
        trainer.train_epoch()
    assert trainer.progress.history["test_accuracy"][-1] == 1.0
    assert trainer.progress.step_losses[-4:] == [0.0] * 4


def test_perceptron_loss_is_rosenblatts_rule():
    output = torch.tensor([[2.0], [-1.0], [0.0], [3.0]], requires_grad=True)
    target = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    loss = PerceptronLoss()(output, target)
    assert loss.item() == (1 + 3) / 4
    (gradient,) = torch.autograd.grad(loss, output)
    assert gradient.flatten().tolist() == [0.0, -0.25, 0.25, 0.25]


def test_logistic_regression(tmp_path):
    assert run(tmp_path, "logistic_regression", lr=None, batch_size=None)["test_accuracy"] >= 0.95


def test_softmax_regression(tmp_path):
    assert run(tmp_path, "softmax_regression", epochs=15)["test_accuracy"] >= 0.93


def test_mlp_dropout(tmp_path):
    metrics = run(tmp_path, "mlp_dropout", epochs=25, lr=None, batch_size=None)
    assert metrics["test_accuracy"] >= 0.9
    net = models.mlp_dropout((1, 8, 8), 10)
    assert [module.p for module in net if isinstance(module, nn.Dropout)] == [0.2, 0.5]


def test_lenet_learns_the_digits(tmp_path):
    metrics = run(tmp_path, "lenet", lr=None, batch_size=None)
    assert metrics["test_accuracy"] >= 0.96
    recipe = models.get_network("lenet").recipe_for("digits")
    assert (metrics["optimizer"], metrics["resize"], metrics["options"]) == ("adam", 28, {})
    assert metrics["epochs"] == recipe.num_epochs


@pytest.mark.parametrize(
    ("network", "epochs"), [("alexnet", 2), ("vgg11", 3), ("batchnorm_lenet", 1), ("resnet18", 1)]
)
def test_deep_networks_learn_the_digits(tmp_path, network, epochs):
    """The first epochs of the default recipe, which go from guessing (0.1) to far better."""
    assert run(tmp_path, network, epochs=epochs, lr=None, batch_size=None)["test_accuracy"] > 0.5
