"""One run: a trainer with the identity that a resumed run must share, and its output files."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from ..data.dataset import Dataset
from ..errors import TrainError, first_line
from ..files import prepare_folder
from ..registry import Network
from .build import build_trainer
from .checkpoint import save_checkpoint
from .config import CONFIG, RECIPE_OPTIONS, TrainConfig, write_toml
from .distributed import Workers
from .events import event_writer, log_epoch, log_graph, log_pictures, log_steps
from .interrupts import deferred_interrupt
from .progress_bar import ProgressDisplay
from .results import in_words, learned, write_results
from .trainer import Interrupted, Report

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CHECKPOINT = "checkpoint.pt"


class Run:
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
        self.config, self.network, self.is_main = config, network, workers.is_main
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
            "outputs": network.task.num_outputs(network.name, data),
        }
        self.num_epochs, self.max_steps = self._length(recipe.num_epochs)
        steps_per_epoch = self.trainer.steps_per_epoch
        whole = self.max_steps if config.epochs is None else self.num_epochs * steps_per_epoch
        self.trainer.updater.plan(whole, steps_per_epoch)
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
        if not self.config.resume and (self.folder / CHECKPOINT).exists():
            display.note(
                f"the run that {self.folder} holds is replaced: --output keeps it, --resume goes on with it"
            )
        with display, self.events() as events:
            if events is not None and self._first_step == 0:
                self._log_graph(events, display)
            self._train_epochs(display, events)
            metrics = self.write_results()
            if events is not None:
                log_pictures(events, self.folder, trainer.data, trainer.progress.step)
            shown = in_words(trainer.task, metrics, "test")
            display.note(f"{shown}, {metrics['samples_per_second']:,.0f} samples/s; results in {self.folder}")
            if parameters := learned(trainer):
                display.note(parameters)
        return metrics

    def _log_graph(self, events: SummaryWriter, display: ProgressDisplay) -> None:
        options = self.trainer.recipe.options
        problem = log_graph(events, self.network, self.trainer.data, self.about["outputs"], options)
        if problem is not None:
            display.note(f"TensorBoard gets no graph of {self.network.name}: {problem}")

    def write_results(self) -> dict[str, Any]:
        """Write the model, the pictures and the metrics, which are returned."""
        return write_results(self.folder if self.is_main else None, self.title, self.trainer, self.about)

    def events(self) -> AbstractContextManager[SummaryWriter | None]:
        """The TensorBoard events of this run, which :meth:`train_epoch` adds to."""
        if not self.is_main:
            return nullcontext()
        return event_writer(self.folder, self._first_step, self.config.resume)

    def _train_epochs(self, display: ProgressDisplay, events: SummaryWriter | None) -> None:
        """Train to the end, with a checkpoint after every epoch and where training stops."""
        trainer, progress = self.trainer, self.trainer.progress
        with deferred_interrupt(patient=trainer.workers.size > 1) as interrupted:
            while (
                progress.step < self.max_steps and not trainer.interrupted and not trainer.has_stopped_early
            ):
                row = self.train_epoch(events, display.update, interrupted)
                if row is not None:
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

    def train_epoch(
        self,
        events: SummaryWriter | None,
        report: Report | None = None,
        interrupted: Interrupted | None = None,
    ) -> dict[str, float] | None:
        """Train for an epoch and save a checkpoint; the epoch's results, None when it was cut short."""
        progress = self.trainer.progress
        first_step = progress.step
        self.trainer.train_epoch(report, self.max_steps, interrupted)
        self._save(events, first_step)
        if progress.epoch_step > 0 or progress.step == first_step:
            return None
        return {key: values[-1] for key, values in progress.history.items()}

    def _save(self, events: SummaryWriter | None, first_step: int) -> None:
        """Save where the run stands, and log the steps since ``first_step``."""
        trainer, progress = self.trainer, self.trainer.progress
        state = trainer.state_dict()
        if not self.is_main or events is None:
            return
        save_checkpoint(self.folder / CHECKPOINT, {"run": self.identity, **state})
        if first_step == self._first_step:
            write_toml(self.folder / CONFIG, self.config.resolved(trainer.recipe, self.num_epochs))
            if first_step == 0 and trainer.data.kind == "images":
                events.add_images("train/inputs", trainer.sample_inputs(), progress.step)
        log_steps(events, progress.step_losses, first_step)
        if progress.epoch_step == 0 and progress.step > first_step:
            log_epoch(events, {key: values[-1] for key, values in progress.history.items()}, progress.step)
