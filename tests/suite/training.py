"""Training runs that are short enough for tests, and what is compared of them."""

from __future__ import annotations

from pathlib import Path

import torch
from pyops.models.data.dataset import Dataset
from pyops.models.data.load import load_data
from pyops.models.recipe import Recipe
from pyops.models.training.build import build_trainer
from pyops.models.training.checkpoint import load_checkpoint
from pyops.models.training.config import TrainConfig
from pyops.models.training.train import train
from pyops.models.training.trainer import Trainer

from pyops import models

CPU = torch.device("cpu")

#: What a run on images leaves in its folder.
FILES = ("metrics.json", "curves.png", "predictions.png", "model.safetensors", "checkpoint.pt")

#: 45 steps an epoch of the digits, whatever the recipes say.
_DEFAULTS = {"quiet": True, "batch_size": 32, "lr": 0.5}


def run(output: Path, network: str = "mlp", **options) -> dict:
    """Train into the folder ``output``, and return the metrics."""
    return train(TrainConfig(network, output=output, **{**_DEFAULTS, **options}))


def trainer_of(
    recipe: Recipe, network: str = "mlp", *, data: Dataset | None = None, layers: str = "pyops"
) -> Trainer:
    """The trainer of a run on ``data``, by default the digits, before its first step."""
    data = load_data("digits") if data is None else data
    return build_trainer(models.get_network(network), data, recipe, layers=layers, seed=0, device=CPU)


def folder_content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_run(left: Path, right: Path) -> None:
    """Weights, step losses and history of two output folders are equal to the last bit."""
    states = [load_checkpoint(folder / "checkpoint.pt") for folder in (left, right)]
    weights = [state["model"] for state in states]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    for name in ("step_losses", "history", "step", "epoch", "best_loss", "best_epoch"):
        assert states[0]["progress"][name] == states[1]["progress"][name]
