"""``pyops compare``: the curves of several runs over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TrainError
from ..files import prepare_folder
from ..training.comparison_picture import save_comparison
from ..training.config import RECIPE_OPTIONS
from ..training.finished_run import FinishedRun, read_run

_SETTINGS = ("network", "data", "layers", "backend", "device", "seed", *RECIPE_OPTIONS, "options", "epochs")


@dataclass(frozen=True)
class Comparison:
    """Several runs by name: the settings in which they differ, and their final results."""

    names: list[str]
    settings: dict[str, list[Any]]
    results: dict[str, list[Any]]


def compare(folders: Sequence[str | Path], output: Path) -> Comparison:
    """Compare the finished runs in ``folders`` and draw their curves into the PNG ``output``.

    Raises:
        TrainError: fewer than two runs, a folder without a finished run, or runs that measure nothing alike.
    """
    if len(folders) < 2:
        raise TrainError(f"compare takes at least two runs, got {len(folders)}")
    runs = [read_run(folder) for folder in folders]
    quantities = _shared_quantities(runs)
    names = _names(runs)
    prepare_folder(output.parent)
    histories = {name: run.history for name, run in zip(names, runs, strict=True)}
    save_comparison(output, histories, quantities)
    settings = {key: [run.metrics.get(key) for run in runs] for key in _SETTINGS}
    differing = {key: values for key, values in settings.items() if any(v != values[0] for v in values)}
    keys = [f"{part}_{quantity}" for quantity in quantities for part in ("train", "test")]
    results = {key: [run.metrics[key] for run in runs] for key in (*keys, "samples_per_second")}
    return Comparison(names, differing, results)


def _shared_quantities(runs: Sequence[FinishedRun]) -> list[str]:
    """The quantities that the histories of all runs hold for both the training and the test part."""
    found = []
    for name in runs[0].history:
        part, _, quantity = name.partition("_")
        both = {f"train_{quantity}", f"test_{quantity}"}
        if part == "test" and all(both <= run.history.keys() for run in runs):
            found.append(quantity)
    if not found:
        raise TrainError("these runs have no curves in common")
    return found


def _names(runs: Sequence[FinishedRun]) -> list[str]:
    """Names of the folders; their paths if two names are equal, numbered if two paths are equal, too."""
    names = [run.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    if len(set(names)) < len(names):
        names = [f"{i}: {name}" for i, name in enumerate(names, start=1)]
    return names
