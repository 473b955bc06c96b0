"""Runs that are over, read back from their folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from ..errors import TrainError, first_line
from ..registry import get_network, layer_library
from .results import METRICS, MODEL


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run, and what its ``metrics.json`` holds."""

    folder: Path
    metrics: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.metrics['network']} on {self.metrics['data']}"

    @property
    def history(self) -> dict[str, list[float]]:
        return self.metrics["history"]

    def load_network(self) -> nn.Module:
        """The trained network of pyops' layers, in evaluation mode, on the CPU.

        Raises:
            ModelsError: the file of its weights is missing, damaged, or does not fit.
        """
        path = self.folder / MODEL
        network = get_network(self.metrics["network"])
        metrics = self.metrics
        net = network.make(
            metrics["input_shape"], metrics["outputs"], layer_library("pyops"), metrics["options"]
        )
        try:
            net.load_state_dict(safetensors.torch.load_file(path))
        except FileNotFoundError:
            raise TrainError(f"{path} does not exist: train the run to its end first") from None
        except (OSError, safetensors.SafetensorError) as error:
            raise TrainError(f"{path}: damaged file of weights: {first_line(error)}") from None
        except RuntimeError as error:
            raise TrainError(f"{path} does not fit {network.name}: {first_line(error)}") from None
        return net.eval()


_ENTRIES = {
    "network": str,
    "data": str,
    "options": dict,
    "input_shape": list,
    "class_names": list,
    "outputs": int,
}
_ENTRIES |= {"history": dict, "step_losses": list}


def read_run(folder: str | Path) -> FinishedRun:
    """The run that wrote its results into ``folder``.

    Raises:
        TrainError: there are none, or they are not those of a single run.
    """
    folder = Path(folder)
    path = folder / METRICS
    if not path.is_file():
        raise TrainError(f"{folder} holds no finished run: {path.name} does not exist")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainError(f"{path} cannot be read: {first_line(error)}") from None
    if isinstance(metrics, dict) and "folds" in metrics:
        raise TrainError(f"{folder} holds a cross-validation: name one of its folds, {folder / 'fold-1'}")
    if not isinstance(metrics, dict):
        raise TrainError(f"{path} is not of a run of this version of pyops")
    for name, kind in _ENTRIES.items():
        if not isinstance(metrics.get(name), kind):
            raise TrainError(f"{path} is not of a run of this version of pyops: no {name}")
    return FinishedRun(folder, metrics)
