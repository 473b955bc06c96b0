"""Networks of pyops' layers train as their torch twins do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pyops.models.data.load import load_data

from pyops import models
from tests.suite.training import run, trainer_of

pytestmark = pytest.mark.usefixtures("without_pictures")

#: Small enough for a test, and without dropout: the libraries draw different masks.
TWINS = {
    "house_price": {},
    "linear_regression": {},
    "logistic_regression": {},
    "mlp": {},
    "mlp_dropout": {"options": {"dropout": 0.0}},
    "perceptron": {"batch_size": 1, "lr": 1.0},  # all of XOR at once pulls its weights nowhere
    "softmax_regression": {},
    "lenet": {},
    "alexnet": {"options": {"width": 16, "dropout": 0.0}},
    "nin": {"options": {"width": 8, "dropout": 0.0}},
    "vgg11": {"options": {"width": 16, "dropout": 0.0}},
    "vgg13": {"options": {"width": 16, "dropout": 0.0}},
    "vgg16": {"options": {"width": 16, "dropout": 0.0}},
    "vgg19": {"options": {"width": 16, "dropout": 0.0}},
    "batchnorm_lenet": {},
    "googlenet": {"resize": 16, "options": {"width": 16}},
    "rnn": {"options": {"width": 8}},
    "lstm": {"options": {"width": 8, "embedding": 12, "num_layers": 2}},
    "gru": {"options": {"width": 8}},
}
#: Width, side of the images and learning rate of networks whose training is chaotic: where a step of SGD
#: goes a little too far for a deep stack of batch normalisations, rounding errors grow tenfold in every
#: step, in torch's own training as well. They are compared in float64, at rates that keep clear of that.
RESIDUAL_TWINS = {
    "resnet18": (16, 64, 1e-3),
    "resnet34": (16, 64, 1e-3),
    "resnet50": (16, 64, 1e-5),
    "resnet56": (4, 8, 1e-3),
}


def test_every_network_has_a_twin_test():
    assert {*TWINS, *RESIDUAL_TWINS} == set(models.network_names())


@pytest.mark.parametrize("network", TWINS)
def test_torch_twin_for_20_steps(tmp_path, network):
    options = {"max_steps": 20, "batch_size": 8, "lr": 0.05, "optimizer": "sgd", **TWINS[network]}
    ours = run(tmp_path / "pyops", network, **options)
    theirs = run(tmp_path / "torch", network, layers="torch", **options)
    assert theirs["backend"] == theirs["layers"] == "torch"
    assert len(ours["step_losses"]) == 20
    assert ours["step_losses"][0] == pytest.approx(theirs["step_losses"][0], abs=1e-6)
    assert ours["step_losses"] == pytest.approx(theirs["step_losses"], abs=1e-4)


@pytest.mark.parametrize("network", RESIDUAL_TWINS)
def test_torch_twin_of_a_residual_network_for_20_steps(network):
    width, side, lr = RESIDUAL_TWINS[network]
    data = load_data("digits")
    data = replace(data, train_inputs=data.train_inputs[:8].double(), train_targets=data.train_targets[:8])
    recipe = models.Recipe(num_epochs=20, lr=lr, batch_size=8, resize=side, options={"width": width})
    losses = {}
    for library in ("pyops", "torch"):
        trainer = trainer_of(recipe, network, data=data, layers=library)
        trainer.net.double()
        batch = trainer.data.train_batch(torch.arange(8))
        losses[library] = [trainer._step(*batch)[0].item() for _ in range(20)]
    assert losses["torch"][-1] < 0.7 * losses["torch"][0]
    assert losses["pyops"] == pytest.approx(losses["torch"], abs=1e-9)


@pytest.mark.parametrize("network", RESIDUAL_TWINS)
def test_residual_networks_train_as_their_torch_twins_begin(tmp_path, network):
    """By the usual way, in float32: the first loss, which no step has touched."""
    width, side, lr = RESIDUAL_TWINS[network]
    options = {"max_steps": 1, "batch_size": 8, "lr": lr, "resize": side, "options": {"width": width}}
    ours = run(tmp_path / "pyops", network, **options)
    theirs = run(tmp_path / "torch", network, layers="torch", **options)
    assert ours["step_losses"] == pytest.approx(theirs["step_losses"], abs=1e-4)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("lenet", {"lr": 0.5, "resize": 12}),
        ("linear_regression", {"lr": 0.1}),
        ("logistic_regression", {"lr": 0.1}),
        ("mlp", {"lr": 0.5, "options": {"num_hiddens": 8}}),
        ("rnn", {"lr": 0.5, "options": {"width": 64}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_small_networks_on_every_backend_equal_their_torch_twins(backend, network, options):
    """Twenty steps of small ones, on four samples; six where an interpreter runs the kernels."""
    steps_taken = 20 if backend.thorough else 6
    data = load_data(models.get_network(network).data)
    steps = slice(0, 3) if data.kind == "text" else slice(None)
    data = replace(
        data,
        train_inputs=data.train_inputs[:4, steps].clone(),
        train_targets=data.train_targets[:4, steps].clone()
        if data.kind == "text"
        else data.train_targets[:4],
    )
    recipe = models.Recipe(num_epochs=steps_taken, batch_size=4, **options)
    losses = {}
    for library in ("pyops", "torch"):
        trainer = trainer_of(recipe, network, data=data, layers=library)
        batch = trainer.data.train_batch(torch.arange(4))
        losses[library] = [trainer._step(*batch)[0].item() for _ in range(steps_taken)]
    assert losses["torch"][-1] < 0.99 * losses["torch"][0]
    assert losses["pyops"] == pytest.approx(losses["torch"], abs=1e-4)
