"""The networks and their registry."""

from __future__ import annotations

import pytest
import torch
from pyops.models import registry

import pyops.nn
from pyops import models

NETWORKS = ("mlp", "softmax_regression")
LIBRARIES = (pyops.nn, torch.nn)


def test_names():
    assert set(NETWORKS) <= set(models.network_names())


@pytest.mark.parametrize(
    ("name", "nearest"), [("mpl", "mlp"), ("MLP", "mlp"), ("softmax", "softmax_regression")]
)
def test_unknown_network_suggests_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown network '{name}'; did you mean '{nearest}'"):
        models.get_network(name)


def test_unknown_network_with_nothing_near_lists_all():
    with pytest.raises(models.NetworkError) as caught:
        models.get_network("zzzz")
    assert all(name in str(caught.value) for name in NETWORKS)
    assert "did you mean" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'mlp' is already registered"):
        models.register("mlp", recipe=models.Recipe(1, 0.1, 1))(lambda: None)


def test_layer_library():
    assert models.layer_library("torch") is torch.nn
    assert models.layer_library("pyops") is pyops.nn
    with pytest.raises(models.NetworkError, match="did you mean 'pyops'"):
        models.layer_library("pyop")


def test_recipes():
    mlp = registry.get_network("mlp")
    notes = models.Recipe(num_epochs=10, lr=0.1, batch_size=256)
    assert mlp.recipe_for("fashion_mnist") == notes
    assert mlp.recipe_for("digits") != notes


@pytest.mark.parametrize("layers", LIBRARIES, ids=lambda library: library.__name__)
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("softmax_regression", {"1.weight": (10, 784), "1.bias": (10,)}),
        (
            "mlp",
            {"1.weight": (256, 784), "1.bias": (256,), "3.weight": (10, 256), "3.bias": (10,)},
        ),
    ],
)
def test_shapes_and_initialisation(name, shapes, layers):
    torch.manual_seed(0)
    net = models.get_network(name).build((1, 28, 28), 10, layers=layers)
    state = net.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == shapes
    for key, value in state.items():
        if key.endswith("bias"):
            assert not value.any()
        else:
            assert value.std().item() == pytest.approx(0.01, rel=0.05)
            assert abs(value.mean().item()) < 0.001
    assert net(torch.rand(5, 1, 28, 28)).shape == (5, 10)


def test_mlp_is_not_linear():
    torch.manual_seed(0)
    net = models.mlp((1, 8, 8), 10)
    x = torch.randn(4, 1, 8, 8)
    assert not torch.allclose(net(x) + net(-x), 2 * net(torch.zeros_like(x)), atol=1e-4)


def test_num_hiddens():
    assert models.mlp((3, 4, 4), 7, num_hiddens=5)[1].weight.shape == (5, 48)


@pytest.mark.parametrize("name", NETWORKS)
def test_twins_start_from_the_same_weights(name):
    states = []
    for layers in LIBRARIES:
        torch.manual_seed(3)
        net = models.get_network(name).build((1, 8, 8), 10, layers=layers)
        states.append(net.state_dict())
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
