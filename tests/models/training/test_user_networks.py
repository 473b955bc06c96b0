"""Networks of the user's own, by ``module:function``, and training from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pyops.models.errors import ModelsError, NetworkError
from pyops.models.training.finished_run import read_run
from typer.testing import CliRunner

from pyops import cli, models

_SOURCE = """
from torch import nn

def make_net(input_shape, num_outputs, *, hidden=8):
    inputs = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, num_outputs))

def nothing(input_shape, num_outputs):
    return None

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory."""
    (tmp_path / "networks_of_mine.py").write_text(_SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "networks_of_mine", raising=False)
    return "networks_of_mine"


def test_a_function_of_mine_is_trained_and_read_back(module: str) -> None:
    arguments = ["train", f"{module}:make_net", "--epochs", "3", "--lr", "0.01", "--option", "hidden=24"]
    result = CliRunner().invoke(cli.app, [*arguments, "--quiet"])
    assert result.exit_code == 0, result.output
    run = read_run(f"runs/{module}.make_net-digits")
    assert run.metrics["test_accuracy"] > 0.8
    assert type(run.load_network()[1]) is torch.nn.Linear
    assert run.load_network()[1].out_features == 24


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make_net", "cannot be imported: No module named 'no_such_module'"),
        ("{}:no_such_function", "cannot be imported: module '{}' has no attribute 'no_such_function'"),
        ("{}:number", "is no function"),
        ("{}:nothing", "returned NoneType, and no module"),
    ],
)
def test_what_is_no_network_is_refused(module: str, name: str, message: str) -> None:
    config = models.TrainConfig(name.format(module), max_steps=1, quiet=True)
    with pytest.raises(NetworkError) as caught:
        models.train(config)
    assert message.format(module) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_training_from_python(tmp_path: Path) -> None:
    config = models.TrainConfig("softmax_regression", max_steps=20, output=tmp_path, quiet=True)
    assert models.train(config)["steps"] == 20
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        models.no_such_name  # noqa: B018


def test_perceptrons_of_several_layers_could_not_be_built() -> None:
    """The notes have 784-200-200-10."""
    net = models.mlp((1, 28, 28), 10, num_hiddens=200, num_hidden_layers=2)
    shapes = [tuple(p.shape) for p in net.parameters() if p.dim() == 2]
    assert shapes == [(200, 784), (200, 200), (10, 200)]
    # Signals keep their size through the layers that are more.
    images = torch.rand(64, 1, 28, 28)
    assert 0.1 < float(net(images).detach().std()) < 10
    with pytest.raises(ModelsError, match="num_hidden_layers must be at least 1, got 0"):
        models.mlp((1, 28, 28), 10, num_hidden_layers=0)
