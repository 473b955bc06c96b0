"""Train one network on one data set and write all about it into a folder.

Of several processes, started by ``torchrun``, which share every batch, the first one shows and writes.
"""

from __future__ import annotations

import random
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import pyops
from pyops import backends

from ..data.dataset import Dataset
from ..data.load import load_data
from ..errors import TrainError, first_line
from ..files import prepare_folder
from ..networks.tools.initialization import RULES
from ..recipe import Recipe
from ..registry import Network, get_network, layer_library
from ..tasks import Task
from .checkpoint import load_checkpoint, save_checkpoint
from .config import RECIPE_OPTIONS, TrainConfig, write_toml
from .distributed import ALONE, Workers, process_group, share_statistics
from .progress import ProgressDisplay
from .results import METRICS, event_writer, log_epoch, log_steps, write_json, write_results
from .trainer import Trainer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CHECKPOINT, CONFIG = "checkpoint.pt", "config.toml"


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, write the results into ``config.folder``, and return what ``metrics.json`` holds.

    Files: ``metrics.json``, ``curves.png``, ``predictions.png`` (images), ``continuation.txt`` (of a language
    model: the beginning of the test text and what the model continues it with), ``submission.csv`` (of rows
    without targets), ``model.safetensors``, ``checkpoint.pt`` (after every epoch), ``config.toml`` (a config
    file that repeats the run) and TensorBoard events. All but the events, which grow as training goes, are
    replaced as a whole, so a crash leaves the last good ones. With ``folds`` they go to folders ``fold-1``
    and so on, and ``metrics.json`` holds means and standard deviations.

    Raises:
        ModelsError: bad names, data, options or checkpoint, a backend that is not available, or an
            output folder that cannot be written: all found before training, and nothing in the
            folder has changed. Or the loss diverges: the checkpoint of the last epoch is kept.
        KeyboardInterrupt: after Ctrl-C; a checkpoint of the last completed step has been saved.
    """
    with process_group(config.device) as (workers, device_name):
        if not workers.is_main:
            config = replace(config, quiet=True)
        return _train(replace(config, device=device_name), workers)


def _train(config: TrainConfig, workers: Workers) -> dict[str, Any]:
    network = get_network(config.network)
    network.check_options(config.options)
    config.check()
    device = _find_device(config.device)
    whole = config.folds is None
    state = load_checkpoint(config.folder / CHECKPOINT) if config.resume and whole else None
    data = load_data(
        config.data_name,
        config.data_root,
        target=config.target,
        fill_missing=config.fill_missing,
        download=config.download,
    )
    backend = _find_backend(config, device)
    with nullcontext() if config.backend is None else pyops.use_backend(config.backend):
        if not whole:
            return _cross_validate(config, network, data, device, backend, workers)
        return _Run(config, network, data, device, backend, state, workers).train()


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
        run = _Run(part, network, data.fold(fold, config.folds), device, backend, state, workers)
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
    if not config.quiet:
        shown = _shown(network.task, summary, "validation", spread=True)
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


def build_trainer(
    network: Network,
    data: Dataset,
    recipe: Recipe,
    *,
    layers: str,
    seed: int,
    device: torch.device,
    workers: Workers = ALONE,
) -> Trainer:
    """A trainer of a fresh ``network`` of layer library ``layers``, ``"pyops"`` or ``"torch"``.

    The same seed gives the same initial weights and order of samples with either library and on
    every device: they are drawn on the CPU, from torch's global generator, which is seeded here, as are
    NumPy's and Python's.
    """
    if recipe.cuda_graph and (device.type != "cuda" or workers.size > 1):
        raise TrainError(f"cuda_graph takes one process on a GPU, got {workers.size} on {device.type}")
    library = layer_library(layers)
    data = data.resized(recipe.resize)
    if recipe.validation:
        data = data.with_validation(recipe.validation, seed)
    _seed_everything(seed)
    outputs = network.task.num_outputs(network.name, data)
    net = network.make(data.input_shape, outputs, library, recipe.options)
    if recipe.init is not None:
        net = RULES[recipe.init](net)
    if workers.size > 1:
        net = share_statistics(net, layers, device)
    if layers == "pyops":
        net = pyops.convert(net)  # what is adjacent becomes one kernel; names and parameters stay
    if workers.rank:
        _seed_everything(seed + workers.rank)  # the same weights, but masks of its own
    return Trainer(
        net,
        data,
        recipe,
        task=network.task,
        layers=library,
        seed=seed,
        device=device,
        workers=workers,
    )


def _seed_everything(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python, of which NumPy's takes 32 bits."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class _Run:
    """One training: the trainer, its identity, and its output files."""

    def __init__(
        self,
        config: TrainConfig,
        network: Network,
        data: Dataset,
        device: torch.device,
        backend: str,
        state: dict[str, Any] | None,
        workers: Workers,
    ) -> None:
        self.config, self.is_main = config, workers.is_main
        self.folder = config.folder
        self.title = f"{config.network} on {config.data_name}"
        saved = {} if state is None else state.get("run", {})
        recipe = config.recipe(network, data.name, saved)
        self.identity = {
            "network": config.network,
            "data": config.data_name,
            "target": config.target,
            "fill_missing": config.fill_missing,
            "layers": config.layers,
            "processes": workers.size,
            "seed": config.seed,
            **{name: getattr(recipe, name) for name in RECIPE_OPTIONS},
            "options": dict(recipe.options),
            "train_samples": len(data.train_targets),
            "data_checksum": data.checksum(),
        }
        self.trainer = build_trainer(
            network,
            data,
            recipe,
            layers=config.layers,
            seed=config.seed,
            device=device,
            workers=workers,
        )
        self.about = {
            **self.identity,
            "backend": backend,
            "device": str(device),
            "input_shape": list(self.trainer.data.input_shape),
            "class_names": list(data.class_names),
        }
        self.num_epochs, self.max_steps = self._length(recipe.num_epochs)
        if state is not None:
            self._restore(state, saved)
        self._first_step = self.trainer.progress.step
        if self.is_main:
            prepare_folder(self.folder)

    def _length(self, default_epochs: int) -> tuple[int, int]:
        """Epochs and steps at which the run ends, whichever comes first."""
        steps_per_epoch, max_steps = self.trainer.steps_per_epoch, self.config.max_steps
        if self.config.epochs is not None:
            epochs = self.config.epochs
        else:
            epochs = default_epochs if max_steps is None else -(-max_steps // steps_per_epoch)
        whole = epochs * steps_per_epoch
        return epochs, whole if max_steps is None else min(whole, max_steps)

    def _restore(self, state: dict[str, Any], saved: dict[str, Any]) -> None:
        path = self.folder / CHECKPOINT
        for name, value in self.identity.items():
            if saved.get(name) != value:
                raise TrainError(
                    f"{path} is of a run with {name} {saved.get(name)!r}, not {value!r}: "
                    f"resume with the same {name}, or choose another output folder"
                )
        try:
            self.trainer.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainError(f"{path} does not fit the network: {first_line(error)}") from error
        done = self.trainer.progress
        if done.step > self.max_steps:
            raise TrainError(
                f"{path} is already at step {done.step} (epoch {done.epoch}), beyond the "
                f"{self.max_steps} steps asked for"
            )

    def train(self) -> dict[str, Any]:
        """Train to the end and write all results; the metrics."""
        trainer, measure = self.trainer, self.trainer.task.measure
        display = ProgressDisplay(
            self.title,
            trainer.samples_after(self.max_steps),
            trainer.samples_after(trainer.progress.step),
            measure=measure and measure.name,
            quiet=self.config.quiet,
        )
        with display, self._events() as events:
            self._train_epochs(display, events)
            metrics = write_results(self.folder if self.is_main else None, self.title, trainer, self.about)
            shown = _shown(trainer.task, metrics, "test")
            display.note(f"{shown}, {metrics['samples_per_second']:,.0f} samples/s; results in {self.folder}")
        return metrics

    def _events(self) -> AbstractContextManager[SummaryWriter | None]:
        if not self.is_main:
            return nullcontext()
        return event_writer(self.folder, self._first_step, self.config.resume)

    def _train_epochs(self, display: ProgressDisplay, events: SummaryWriter | None) -> None:
        """Train to the end, with a checkpoint after every epoch and where training stops."""
        trainer, progress = self.trainer, self.trainer.progress
        with _deferred_interrupt(patient=trainer.workers.size > 1) as interrupted:
            while (
                progress.step < self.max_steps and not trainer.interrupted and not trainer.has_stopped_early
            ):
                first_step = progress.step
                trainer.train_epoch(display.update, self.max_steps, interrupted)
                self._save(events, first_step)
                if progress.epoch_step == 0 and progress.step > first_step:
                    row = {key: values[-1] for key, values in progress.history.items()}
                    display.epoch(progress.epoch, self.num_epochs, row, trainer.samples_per_second)
        if trainer.interrupted:
            display.note(
                f"interrupted after step {progress.step}; {self.folder / CHECKPOINT} is saved: "
                "continue with --resume"
            )
            raise KeyboardInterrupt
        if trainer.has_stopped_early:
            display.note(
                f"stopped early: the validation loss has not fallen since epoch {progress.best_epoch}, "
                "whose weights are kept"
            )

    def _save(self, events: SummaryWriter | None, first_step: int) -> None:
        """Save where the run stands, and log the steps since ``first_step``."""
        trainer, progress = self.trainer, self.trainer.progress
        state = trainer.state_dict()
        if not self.is_main or events is None:
            return
        save_checkpoint(self.folder / CHECKPOINT, {"run": self.identity, **state})
        if first_step == self._first_step:
            write_toml(self.folder / CONFIG, self.config.resolved(trainer.recipe, self.num_epochs))
        log_steps(events, progress.step_losses, first_step)
        if progress.epoch_step == 0 and progress.step > first_step:
            log_epoch(events, {key: values[-1] for key, values in progress.history.items()}, progress.step)


def _shown(task: Task, results: dict[str, Any], part: str, *, spread: bool = False) -> str:
    """What sums up ``results``, in words; with the standard deviation of each if ``spread``."""
    words = []
    for name in task.shown:
        key = f"{part}_{name}"
        deviation = f" +- {results[f'{key}_std']:.4f}" if spread else ""
        words.append(f"{part} {name.replace('_', ' ')} {results[key]:.4f}{deviation}")
    return ", ".join(words)


@contextmanager
def _deferred_interrupt(*, patient: bool) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and the request to terminate into a flag, so that neither strikes amid a step; a second
    one acts at once, unless ``patient``: torchrun hands on to its processes what the terminal sent them, too.

    Yields a function that tells whether one came. Only the main thread receives signals.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def remember(*_: object) -> None:
        came.set()
        if not patient:
            restore()

    for number in previous:
        signal.signal(number, remember)
    try:
        yield came.is_set
    finally:
        restore()
