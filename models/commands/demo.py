"""``pyops demo``: the same network with pyops' layers and with torch's, side by side."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..data.load import load_data
from ..registry import get_network
from ..training.build import build_trainer
from ..training.config import TrainConfig
from ..training.train import train
from ..training.trainer import Trainer

_NETWORK, _DATA = "mlp", "digits"
_LIBRARIES = ("pyops", "torch")
_ROUNDS = 10
_EPOCHS_PER_TURN = 10


def demo(output: str | Path = "runs/demo", epochs: int | None = None) -> dict[str, Any]:
    """Train ``mlp`` on the digits with pyops' layers, then its torch twin, and print a comparison.

    Results of both runs go to ``output/pyops`` and ``output/torch``. Returns, by library, the
    ``test_accuracy`` and ``samples_per_second``, and ``step_loss_difference``: the largest
    difference of the two runs' losses at any step.

    Raises:
        ModelsError: as :func:`pyops.models.training.train.train`.
    """
    folder = Path(output)
    console = Console()
    metrics = {}
    for library in _LIBRARIES:
        console.print(f"{_NETWORK} on {_DATA} with {library} layers")
        metrics[library] = train(
            TrainConfig(_NETWORK, _DATA, epochs=epochs, layers=library, output=folder / library)
        )
    speeds = _measure_speeds(metrics)
    step_losses = (metrics[library]["step_losses"] for library in _LIBRARIES)
    difference = max(abs(ours - theirs) for ours, theirs in zip(*step_losses, strict=True))
    summary: dict[str, Any] = {
        library: {
            "test_accuracy": metrics[library]["test_accuracy"],
            "train_loss": metrics[library]["train_loss"],
            "samples_per_second": speeds[library],
        }
        for library in _LIBRARIES
    }
    console.print(_table(summary))
    final = abs(metrics["pyops"]["train_loss"] - metrics["torch"]["train_loss"])
    console.print(f"Training loss: final difference {final:.1e}, largest at any step {difference:.1e}")
    for picture in ("curves.png", "predictions.png"):
        console.print(f"Picture: {folder / 'pyops' / picture}", soft_wrap=True)
    return summary | {"step_loss_difference": difference}


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"{_NETWORK} on {_DATA}, CPU threads: {torch.get_num_threads()}")
    table.add_column("layers")
    for column in ("test accuracy", "final train loss", "samples/s (median)"):
        table.add_column(column, justify="right")
    for library in _LIBRARIES:
        row = summary[library]
        table.add_row(
            library,
            f"{row['test_accuracy']:.4f}",
            f"{row['train_loss']:.5f}",
            f"{row['samples_per_second']:,.0f}",
        )
    return table


def _measure_speeds(metrics: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Median samples per second by library, over turns of some epochs.

    The load of the machine may have changed between the two training runs. Turns in the order pyops, torch,
    torch, pyops, ... share its load and its clock.
    """
    data, network = load_data(_DATA), get_network(_NETWORK)
    trainers = {
        library: build_trainer(
            network,
            data,
            network.recipe_for(_DATA),
            layers=library,
            seed=run["seed"],
            device=torch.device("cpu"),
        )
        for library, run in metrics.items()
    }
    speeds: dict[str, list[float]] = {library: [] for library in trainers}
    for round_number in range(_ROUNDS + 1):
        turns = _LIBRARIES if round_number % 2 == 0 else reversed(_LIBRARIES)
        for library in turns:
            if round_number == 0:
                _train_turn(trainers[library])  # warms up
            else:
                speeds[library].append(_train_turn(trainers[library]))
    return {library: statistics.median(values) for library, values in speeds.items()}


def _train_turn(trainer: Trainer) -> float:
    """Train some epochs; samples per second of the steps after the warm-up, 0 when all were warm-up."""
    progress = trainer.progress
    samples, seconds = progress.timed_samples, progress.timed_seconds
    for _ in range(_EPOCHS_PER_TURN):
        trainer.train_epoch()
    elapsed = progress.timed_seconds - seconds
    return (progress.timed_samples - samples) / elapsed if elapsed > 0 else 0.0
