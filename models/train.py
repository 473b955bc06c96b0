"""``pyops train``: train one network on one data set and write all about it into a folder."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import nn

import pyops
from pyops import backends

from .checkpoint import load_checkpoint, save_checkpoint
from .data import ImageData, TextData, load_data
from .errors import NetworkError, TrainError, first_line
from .files import atomic_write, prepare_folder
from .language_model import LanguageModel
from .plots import save_curves, save_predictions
from .progress import ProgressDisplay
from .registry import Network, Recipe, get_network, layer_library
from .trainer import Trainer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CHECKPOINT = "checkpoint.pt"

_CONTINUATION = 300  # characters

#: Hyper-parameters that a TrainConfig may replace, by the names that both have.
RECIPE_OPTIONS = ("lr", "batch_size", "optimizer", "resize")


@dataclass(frozen=True)
class TrainConfig:
    """What to train and how. None stands for the default of the network on that data set.

    Args:
        network: name in :func:`pyops.models.network_names`.
        data: name in :func:`pyops.models.data.data_names`; data_root: the folder of its files or, for
            text, the file.
        epochs: of the whole run, those before a resume included.
        max_steps: stop after so many steps. Alone it decides the length; with ``epochs`` the
            earlier of the two does.
        lr, batch_size, optimizer: the hyper-parameters. When resuming, None keeps those of the
            checkpoint, as it does for:
        resize: side of the square that images are resized to.
        options: arguments of the network's builder, such as ``width`` (divides the channels).
        backend: of pyops' kernels, as in :func:`pyops.use_backend`; None chooses by device.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        layers: ``"pyops"``, or ``"torch"`` for the same network of torch's own layers.
        seed: decides the initial weights and the order of the samples.
        output: folder of the results, ``runs/NETWORK-DATA`` by default; results of an earlier run
            in it are replaced.
        resume: continue from the checkpoint in ``output``.
        quiet: show nothing.
    """

    network: str
    data: str | None = None
    data_root: str | Path | None = None
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    optimizer: str | None = None
    resize: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    backend: str | None = None
    device: str = "cpu"
    layers: str = "pyops"
    seed: int = 0
    output: str | Path | None = None
    resume: bool = False
    quiet: bool = False

    @property
    def data_name(self) -> str:
        """The data set: the one asked for, or the network's own."""
        return get_network(self.network).data if self.data is None else self.data

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output or Path("runs", f"{self.network}-{self.data_name}"))


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, write the results into ``config.folder``, and return what ``metrics.json`` holds.

    Files: ``metrics.json``, ``curves.png``, ``predictions.png`` (of a language model ``continuation.txt``:
    the beginning of the test text and what the model continues it with), ``model.safetensors``,
    ``checkpoint.pt`` (after every epoch) and TensorBoard events. All but the events, which grow as
    training goes, are replaced as a whole, so a crash leaves the last good ones.

    Raises:
        ModelsError: bad names, data, options or checkpoint, a backend that is not available, or an
            output folder that cannot be written: all found before training, and nothing in the
            folder has changed. Or the loss diverges: the checkpoint of the last epoch is kept.
        KeyboardInterrupt: after Ctrl-C; a checkpoint of the last completed step has been saved.
    """
    network = get_network(config.network)
    network.check_options(config.options)
    _check_options(config)
    device = _find_device(config.device)
    state = load_checkpoint(config.folder / CHECKPOINT) if config.resume else None
    data = load_data(config.data_name, config.data_root)
    if data.task != network.task:
        raise NetworkError(f"{network.name} is trained on {network.task}, but {data.name} has {data.task}")
    backend = _find_backend(config, device)
    with nullcontext() if config.backend is None else pyops.use_backend(config.backend):
        run = _Run(config, network, data, device, backend, state)
        prepare_folder(config.folder)
        return run.train()


def _check_options(config: TrainConfig) -> None:
    for name in ("epochs", "max_steps", "batch_size", "resize"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise TrainError(f"{name} must be at least 1, got {value}")
    if config.lr is not None and not (math.isfinite(config.lr) and config.lr > 0):
        raise TrainError(f"lr must be a positive number, got {config.lr}")
    if not 0 <= config.seed < 2**63:
        raise TrainError(f"seed must be in [0, 2**63), got {config.seed}")
    if config.layers == "torch" and config.backend is not None:
        raise TrainError(f"backend {config.backend!r} chooses among pyops' kernels, but layers is 'torch'")


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
    data: ImageData | TextData,
    recipe: Recipe,
    *,
    layers: str,
    seed: int,
    device: torch.device,
) -> Trainer:
    """A trainer of a fresh ``network`` of layer library ``layers``, ``"pyops"`` or ``"torch"``.

    The same seed gives the same initial weights and order of samples with either library and on
    every device: they are drawn on the CPU, from torch's global generator, which is seeded here.
    """
    library = layer_library(layers)
    data = data.resized(recipe.resize)
    torch.manual_seed(seed)
    net = _build_network(network, data, recipe, library)
    if layers == "pyops":
        net = pyops.convert(net)  # what is adjacent becomes one kernel; names and parameters stay
    return Trainer(net, data, recipe, layers=library, seed=seed, device=device)


def _build_network(
    network: Network, data: ImageData | TextData, recipe: Recipe, layers: ModuleType
) -> nn.Module:
    try:
        return network.build(data.image_shape, data.num_classes, layers=layers, **recipe.options)
    except NetworkError:
        raise
    except (TypeError, ValueError) as error:  # a layer refuses the value of an option
        raise NetworkError(f"{network.name}: {first_line(error)}") from None


def _recipe(config: TrainConfig, network: Network, saved: Mapping[str, Any]) -> Recipe:
    """The hyper-parameters asked for, else those ``saved`` in a checkpoint, else the network's own."""
    default = network.recipe_for(config.data_name)
    if saved.get("network") != network.name:  # refused when it is restored
        saved = {}
    chosen = {name: saved[name] for name in RECIPE_OPTIONS if name in saved}
    chosen |= {name: value for name in RECIPE_OPTIONS if (value := getattr(config, name)) is not None}
    chosen["options"] = {**saved.get("options", default.options), **config.options}
    return replace(default, **chosen)


class _Run:
    """One call of :func:`train`: the trainer, its identity, and its output files."""

    def __init__(
        self,
        config: TrainConfig,
        network: Network,
        data: ImageData | TextData,
        device: torch.device,
        backend: str,
        state: dict[str, Any] | None,
    ) -> None:
        self.config = config
        self.folder = config.folder
        self.backend = backend
        self.title = f"{config.network} on {config.data_name}"
        saved = {} if state is None else state.get("run", {})
        recipe = _recipe(config, network, saved)
        self.identity = {
            "network": config.network,
            "data": config.data_name,
            "layers": config.layers,
            "seed": config.seed,
            **{name: getattr(recipe, name) for name in RECIPE_OPTIONS},
            "options": dict(recipe.options),
            "train_samples": len(data.train_labels),
        }
        self.trainer = build_trainer(
            network, data, recipe, layers=config.layers, seed=config.seed, device=device
        )
        self.num_epochs, self.max_steps = self._length(recipe.num_epochs)
        if state is not None:
            self._restore(state, saved)

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
        trainer = self.trainer
        display = ProgressDisplay(
            self.title,
            trainer.samples_after(self.max_steps),
            trainer.samples_after(trainer.progress.step),
            quiet=self.config.quiet,
        )
        first_step = trainer.progress.step
        with display, _event_writer(self.folder, first_step, self.config.resume) as events:
            self._train_epochs(display, events)
            metrics = self._write_results()
            quality = f"test accuracy {metrics['test_accuracy']:.4f}"
            if "test_perplexity" in metrics:
                quality = f"test perplexity {metrics['test_perplexity']:.3f}, {quality}"
                display.note((self.folder / "continuation.txt").read_text(encoding="utf-8"))
            display.note(
                f"{quality}, {metrics['samples_per_second']:,.0f} samples/s; results in {self.folder}"
            )
        return metrics

    def _train_epochs(self, display: ProgressDisplay, events: SummaryWriter) -> None:
        """Train to the end, with a checkpoint after every epoch and where training stops."""
        progress = self.trainer.progress
        with _deferred_interrupt() as interrupted:
            while progress.step < self.max_steps and not interrupted():
                first_step = progress.step
                self.trainer.train_epoch(display.update, lambda step: step >= self.max_steps or interrupted())
                save_checkpoint(self.folder / CHECKPOINT, {"run": self.identity, **self.trainer.state_dict()})
                _log_steps(events, progress.step_losses, first_step)
                if progress.epoch_step == 0:
                    row = {key: values[-1] for key, values in progress.history.items()}
                    _log_epoch(events, row, progress.step)
                    speed = self.trainer.samples_per_second
                    display.epoch(progress.epoch, self.num_epochs, row, speed)
        if interrupted():
            display.note(
                f"interrupted after step {progress.step}; {self.folder / CHECKPOINT} is saved: "
                "continue with --resume"
            )
            raise KeyboardInterrupt

    def _write_results(self) -> dict[str, Any]:
        trainer, progress = self.trainer, self.trainer.progress
        test_loss, test_accuracy, predictions = trainer.evaluate()
        history = trainer.history_until_now(test_loss, test_accuracy)
        metrics = {
            **self.identity,
            "backend": self.backend,
            "device": str(trainer.device),
            "epochs": progress.epoch,
            "steps": progress.step,
            "train_loss": history["train_loss"][-1],
            "train_accuracy": history["train_accuracy"][-1],
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "samples_per_second": trainer.samples_per_second,
            "torch_version": torch.__version__,
            "history": history,
            "step_losses": progress.step_losses,
        }
        with atomic_write(self.folder / "model.safetensors") as file:
            file.write(safetensors.torch.save(trainer.net.state_dict()))
        save_curves(self.folder / "curves.png", self.title, history, progress.step_losses)
        data = trainer.data.to(torch.device("cpu"))
        if isinstance(data, TextData):
            # Beyond float's range for a model that is worse than no model.
            metrics |= {
                f"{split}_perplexity": math.exp(min(metrics[f"{split}_loss"], 700.0))
                for split in ("train", "test")
            }
            self._write_continuation(data)
        else:
            save_predictions(
                self.folder / "predictions.png",
                self.title,
                data.test_images,
                data.test_labels,
                predictions,
                data.class_names,
            )
        with atomic_write(self.folder / "metrics.json") as file:
            file.write(json.dumps(metrics, indent=2, allow_nan=False).encode() + b"\n")
        return metrics

    def _write_continuation(self, data: TextData) -> None:
        """What the model continues the beginning of the test text with."""
        net = self.trainer.net
        assert isinstance(net, LanguageModel)
        prompt = data.test_windows[0]
        generator = torch.Generator().manual_seed(self.config.seed)
        drawn = net.continued(prompt.to(self.trainer.device), _CONTINUATION, generator)
        with atomic_write(self.folder / "continuation.txt") as file:
            file.write(f"{data.decoded(prompt)}|{data.decoded(drawn)}\n".encode())


def _log_steps(events: SummaryWriter, step_losses: list[float], first_step: int) -> None:
    for step, loss in enumerate(step_losses[first_step:], start=first_step + 1):
        events.add_scalar("loss/step", loss, step)


def _log_epoch(events: SummaryWriter, row: dict[str, float], step: int) -> None:
    for quantity in ("loss", "accuracy"):
        for split in ("train", "test"):
            events.add_scalar(f"{quantity}/{split}", row[f"{split}_{quantity}"], step)


@contextmanager
def _event_writer(folder: Path, step: int, resume: bool) -> Iterator[SummaryWriter]:
    """TensorBoard events in ``folder``; a new run removes old ones, a resumed run hides those that
    a killed one wrote after its last checkpoint."""
    from torch.utils.tensorboard import SummaryWriter  # half a second to import

    if not resume:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
    with SummaryWriter(str(folder), purge_step=step + 1 if resume else None) as writer:
        yield writer


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into a flag, so that it never strikes amid a step; a second one acts at once.

    Yields a function that tells whether it came. Only the main thread receives signals.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    previous = signal.getsignal(signal.SIGINT)

    def remember(*_: object) -> None:
        came.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, remember)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
