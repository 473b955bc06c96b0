"""Train one network on one data set and write all about it into a folder.

Of several processes, started by ``torchrun``, which share every batch, the first one shows and writes.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

import pyops
from pyops import backends

from ..data.dataset import Dataset
from ..data.load import load_data
from ..errors import TrainError, first_line
from ..registry import Network, get_network
from .checkpoint import load_checkpoint
from .comparison_picture import save_comparison
from .config import CONFIG, TrainConfig, write_toml
from .distributed import ALONE, Workers, process_group
from .results import METRICS, in_words, write_json
from .run import CHECKPOINT, Run

#: The picture of a cross-validation.
FOLDS = "folds.png"


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, write the results into ``config.folder``, and return what ``metrics.json`` holds.

    Files: ``metrics.json``, ``curves.png``, ``predictions.png`` (images), ``confusion.png`` (images or rows
    with classes), ``boundary.png`` (rows of two numbers with classes), ``continuation.txt`` (of a language
    model: the beginning of the test text and what the model continues it with), ``submission.csv`` (of rows
    without targets), ``model.safetensors``, ``checkpoint.pt`` (after every epoch), ``config.toml`` (a config
    file that repeats the run) and TensorBoard events. All but the events, which grow as training goes, are
    replaced as a whole, so a crash leaves the last good ones. With ``folds`` they go to folders ``fold-1``
    and so on, ``metrics.json`` holds means and standard deviations, and ``folds.png`` has the curves of all.

    Raises:
        ModelsError: bad names, data, options or checkpoint, a backend that is not available, or an
            output folder that cannot be written: all found before training, and nothing in the
            folder has changed. Or the loss diverges: the checkpoint of the last epoch is kept.
        KeyboardInterrupt: after Ctrl-C; a checkpoint of the last completed step has been saved.
    """
    with process_group(config.device) as (workers, device_name):
        if not workers.is_main:
            config = replace(config, quiet=True)
        with _threads(config.threads):
            return _train(replace(config, device=device_name), workers)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute on so many threads, then on as many as before."""
    before = torch.get_num_threads()
    if count is not None and count >= 1:  # other numbers are refused with the rest of the options
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def new_run(config: TrainConfig) -> Run:
    """A run from the beginning in this process alone, for a caller that trains it epoch by epoch.

    Raises:
        ModelsError: as :func:`train`, for what is found before training.
    """
    network, data, device = _checked(config)
    return Run(config, network, data, device, _find_backend(config, device), None, ALONE)


def _checked(config: TrainConfig) -> tuple[Network, Dataset, torch.device]:
    """Network, data and device that ``config`` names."""
    network = get_network(config.network)
    network.check_options(config.options)
    config.check()
    device = _find_device(config.device)
    data = load_data(
        config.data_name,
        config.data_root,
        target=config.target,
        fill_missing=config.fill_missing,
        download=config.download,
    )
    return network, data, device


def _train(config: TrainConfig, workers: Workers) -> dict[str, Any]:
    network, data, device = _checked(config)
    whole = config.folds is None
    state = load_checkpoint(config.folder / CHECKPOINT) if config.resume and whole else None
    backend = _find_backend(config, device)
    with nullcontext() if config.backend is None else pyops.use_backend(config.backend):
        if not whole:
            return _cross_validate(config, network, data, device, backend, workers)
        return Run(config, network, data, device, backend, state, workers).train()


def _cross_validate(
    config: TrainConfig,
    network: Network,
    data: Dataset,
    device: torch.device,
    backend: str,
    workers: Workers,
) -> dict[str, Any]:
    """Train once for each fold and sum up the validation results; resumed, train what is left."""
    paths = [config.folder / f"fold-{i + 1}" / CHECKPOINT for i in range(config.folds)]
    resumed = [config.resume and path.is_file() for path in paths]
    if config.resume and not any(resumed):
        raise TrainError(f"nothing to resume: {paths[0]} does not exist")
    results = []
    for fold, path in enumerate(paths):
        # Built one by one: each begins with the random numbers of the seed, however the others ended.
        part = replace(config, output=path.parent, resume=resumed[fold])
        state = load_checkpoint(path) if resumed[fold] else None
        run = Run(part, network, data.fold(fold, config.folds), device, backend, state, workers)
        results.append(run.train())
    summary: dict[str, Any] = {**run.identity, "folds": config.folds}
    names = [name for name in results[0] if name.startswith(("train_", "validation_", "test_"))]
    for name in names:
        values = [result[name] for result in results]
        if isinstance(values[0], float):
            summary |= {name: statistics.mean(values), f"{name}_std": statistics.stdev(values)}
    if workers.is_main:
        write_toml(config.folder / CONFIG, config.resolved(run.trainer.recipe, run.num_epochs))
        write_json(config.folder / METRICS, summary)
        histories = {f"fold {i}": result["history"] for i, result in enumerate(results, start=1)}
        save_comparison(config.folder / FOLDS, histories, network.task.shown, "validation")
    if not config.quiet:
        shown = in_words(network.task, summary, "validation", spread=True)
        print(f"{config.folds} folds: {shown}; results in {config.folder}", file=sys.stderr)
    return summary


def _find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts when built without CUDA
        raise TrainError(f"device {name!r} cannot be used: {first_line(error)}") from None
    return device


def _find_backend(config: TrainConfig, device: torch.device) -> str:
    """Name of the backend that will serve the loss: the one asked for, or pyops' own choice."""
    if config.layers == "torch":
        return "torch"
    try:
        with nullcontext() if config.backend is None else pyops.use_backend(config.backend):
            handles = backends.resolve(torch.empty(0, device=device))
    except (ValueError, RuntimeError) as error:
        raise TrainError(first_line(error)) from None
    return "reference" if handles is None else handles.backend
