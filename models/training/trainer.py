"""The training loop: minibatch steps on a data set in memory, with a resumable state.

The order of the samples comes from a generator of its own, so it depends on the seed alone and not
on how many random numbers a network draws. Losses stay on the device and are fetched every
``SYNC_EVERY`` steps: the host waits for a GPU no more often than that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pyops.cuda_graph import GraphedStep

from ..data.augmentation import Augmentation
from ..data.dataset import Dataset
from ..errors import TrainError
from ..recipe import Recipe
from ..tasks import Task
from .checkpoint import random_states, restore_random_states
from .distributed import ALONE, Workers
from .optimization import Updater

SYNC_EVERY = 20


@dataclass
class Progress:
    """Where a run stands: plain numbers, saved with every checkpoint.

    ``epoch`` counts finished epochs, ``epoch_step`` the steps done in the running one and
    ``epoch_score`` what its measure has summed up. The warm-up (the first steps of a process) is timed
    apart. ``seconds`` is the time of all of training, warm-up and evaluations included. ``best_loss`` is the
    lowest validation loss, ``best_epoch`` the number of the epoch it came after.
    """

    epoch: int = 0
    epoch_step: int = 0
    epoch_score: float = 0.0
    step: int = 0
    timed_samples: int = 0
    timed_seconds: float = 0.0
    warm_up_samples: int = 0
    warm_up_seconds: float = 0.0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = 0
    step_losses: list[float] = field(default_factory=list)
    history: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """``score`` is the task's measure, if it has one; ``predictions`` lie on the CPU."""

    loss: float
    score: float | None
    predictions: torch.Tensor


# Called every SYNC_EVERY steps: samples since the last call, the epoch's loss and score so far.
Report = Callable[[int, float, float | None], None]
# Asked after every step, or of several processes after every SYNC_EVERY: True stops the training there.
Interrupted = Callable[[], bool]


class Trainer:
    """A network in training.

    Args:
        net: maps inputs to outputs as ``task`` wants them; moved to ``device``.
        data: inputs and targets; moved to ``device`` as a whole.
        recipe: the hyper-parameters.
        task: the loss and the measure.
        layers: library of the loss (:mod:`pyops.nn` or :mod:`torch.nn`).
        seed: of the order of the samples.
        workers: the processes that train together.
    """

    def __init__(
        self,
        net: nn.Module,
        data: Dataset,
        recipe: Recipe,
        *,
        task: Task,
        layers: ModuleType,
        seed: int,
        device: torch.device,
        workers: Workers = ALONE,
    ) -> None:
        self.net = net.to(device)
        self.data = data.to(device)
        self.recipe, self.task = recipe, task
        self.batch_size = recipe.batch_size
        self._targets_per_sample = math.prod(data.train_targets.shape[1:])
        self.device = device
        self.loss = task.loss.make(layers)
        self.updater = Updater(self.net, recipe, device)
        self.progress = Progress()
        self.workers = workers
        self.interrupted = False
        self._shared_net = workers.wrap(self.net, device)
        self._forward = torch.compile(self._shared_net) if recipe.compile else self._shared_net
        self._order = torch.Generator().manual_seed(seed)
        self._epoch_order = self._order.get_state()  # its state when the running epoch began
        self._graphed_step = GraphedStep(self._step) if recipe.cuda_graph else None
        self._no_score = torch.zeros((), dtype=torch.float64, device=device)
        self._augmentation = Augmentation(recipe.augmentations)
        self._is_warm = False
        self._best: dict[str, torch.Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.data.train_targets) / self.batch_size)

    def samples_after(self, step: int) -> int:
        """Samples seen in the first ``step`` steps of a run."""
        epochs, epoch_steps = divmod(step, self.steps_per_epoch)
        # Only the last batch of an epoch can be short.
        return epochs * len(self.data.train_targets) + epoch_steps * self.batch_size

    @property
    def samples_per_second(self) -> float:
        """Speed of the training steps alone; of the warm-up when there was nothing else."""
        progress = self.progress
        if progress.timed_samples > 0:
            return progress.timed_samples / progress.timed_seconds
        return progress.warm_up_samples / progress.warm_up_seconds

    @property
    def has_stopped_early(self) -> bool:
        """Whether the validation loss has not fallen for as many epochs as the recipe waits."""
        patience = self.recipe.early_stop
        return patience is not None and self.progress.epoch - self.progress.best_epoch >= patience

    def train_epoch(
        self,
        report: Report | None = None,
        last_step: int | None = None,
        interrupted: Interrupted | None = None,
    ) -> None:
        """Train for one epoch, or for what is left of the running one, and add it to the history.

        An epoch that ends early, after the ``last_step`` of the run or because it was ``interrupted`` (then
        :attr:`interrupted` is set), is continued by the next call.

        Raises:
            TrainError: the loss is no longer finite.
        """
        progress = self.progress
        if self.workers.any(interrupted is not None and interrupted(), self.device):
            self.interrupted = True
            return
        begin = time.perf_counter()
        self._order.set_state(self._epoch_order)
        order = torch.randperm(len(self.data.train_targets), generator=self._order)
        self._augmentation.draw(len(order), self.data.input_shape, self._order)
        batches = order.to(self.device).split(self.batch_size)
        self.net.train()
        end = len(batches)
        if last_step is not None:
            end = min(end, progress.epoch_step + last_step - progress.step)
        while progress.epoch_step < end and not self.interrupted:
            chunk = batches[progress.epoch_step : min(end, progress.epoch_step + SYNC_EVERY)]
            samples = self._train_chunk(chunk, interrupted)
            if report is not None:
                report(samples, *self._running_means())
        if progress.epoch_step == len(batches):
            self._end_epoch()
        progress.seconds += time.perf_counter() - begin

    def _end_epoch(self) -> None:
        progress = self.progress
        row = self._history_row(self.evaluate())
        for key, value in row.items():
            progress.history.setdefault(key, []).append(value)
        progress.epoch += 1
        progress.epoch_step, progress.epoch_score = 0, 0.0
        self._epoch_order = self._order.get_state()
        watched = row.get("validation_loss", row["train_loss"])
        self.updater.end_epoch(watched)
        if watched < progress.best_loss:
            progress.best_loss, progress.best_epoch = watched, progress.epoch
            if self.recipe.early_stop is not None:
                self._best = {name: value.clone() for name, value in self.net.state_dict().items()}

    def restore_best(self) -> None:
        """Go back to the weights of the best epoch, if the recipe watches for it."""
        if self._best is not None:
            self.net.load_state_dict(self._best)

    def history_until_now(self, test: Evaluation) -> dict[str, list[float]]:
        """The history; an epoch that was cut short adds an entry with the results ``test``."""
        history = self.progress.history
        if self.progress.epoch_step == 0:
            return history
        row = self._history_row(test)
        return {key: [*history.get(key, []), row[key]] for key in row}

    def sample_inputs(self, most: int = 32) -> torch.Tensor:
        """The first training inputs as the last epoch saw them, augmented."""
        indices = torch.arange(min(most, len(self.data.train_targets)), device=self.device)
        return self._augmentation(self.data.train_batch(indices)[0], indices)

    def _history_row(self, test: Evaluation) -> dict[str, float]:
        parts = {"train": self._running_means()}
        if self.data.validation is not None:
            validation = self.evaluate("validation")
            parts["validation"] = validation.loss, validation.score
        parts["test"] = test.loss, test.score
        row = {"epoch": self.progress.step / self.steps_per_epoch, "lr": self.updater.lr}
        for part, (loss, score) in parts.items():
            row |= self.named(part, loss, score)
        return row

    def named(self, part: str, loss: float, score: float | None) -> dict[str, float]:
        """Results of a ``part`` of the data by the names they have in history and metrics."""
        row = {f"{part}_loss": loss}
        if self.task.shown_loss is not None:
            name, function = self.task.shown_loss
            row[f"{part}_{name}"] = function(loss)
        if self.task.measure is not None and score is not None:
            row[f"{part}_{self.task.measure.name}"] = score
        return row

    def _train_chunk(self, batches: Sequence[torch.Tensor], interrupted: Interrupted | None) -> int:
        """Train some steps and wait for the device and the other processes once; the samples seen."""
        progress, alone = self.progress, self.workers.size == 1
        losses: list[torch.Tensor] = []
        scores: list[torch.Tensor] = []
        samples = 0
        self._synchronize()
        begin = time.perf_counter()
        for batch in batches:
            part, weight = self.workers.share(batch)
            inputs, targets = self.data.train_batch(part)
            inputs = self._augmentation(inputs, part)
            if self._graphed_step is not None:
                loss, score = self._graphed_step(inputs, targets)
            else:
                loss, score = self._step(inputs, targets, weight)
            losses.append(loss)
            scores.append(score)
            samples += len(batch)
            if alone and interrupted is not None and interrupted():
                break
        asked_to_stop = interrupted is not None and interrupted()
        *values, score, stops = self._summed(losses, scores, asked_to_stop)
        seconds = time.perf_counter() - begin
        self._check_finite(values)
        self.interrupted = stops > 0
        progress.step += len(values)
        progress.epoch_step += len(values)
        progress.epoch_score += score
        progress.step_losses += values
        if self._is_warm:
            progress.timed_samples += samples
            progress.timed_seconds += seconds
        else:
            progress.warm_up_samples += samples
            progress.warm_up_seconds += seconds
            self._is_warm = True
        return samples

    def _step(
        self, inputs: torch.Tensor, targets: torch.Tensor, weight: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: its loss and what its measure sums up, both 0-d on the device.

        ``weight`` is the fraction of the batch that these samples are; other processes have the rest. The
        loss is their contribution to the loss of the batch. With weight 0 they do not count.
        """
        self.updater.zero_grad()
        size = math.ceil(len(targets) / self.recipe.accumulate)
        parts = list(zip(inputs.split(size), targets.split(size), strict=True))
        losses, scores = [], []
        for number, (part, truth) in enumerate(parts, start=1):
            with self._averaging(last=number == len(parts)):
                outputs, loss = self._outputs_and_loss(self._forward, part, truth)
                share = len(truth) / len(targets) * weight
                # The processes' gradients are averaged, but those of the whole batch are their sum.
                factor = share * self.workers.size
                self.updater.backward(loss if factor == 1 else loss * factor)
            losses.append(loss.detach() if share == 1 else loss.detach() * share)
            scores.append(self._score(outputs.detach(), truth) if weight else self._no_score)
        self.updater.step()
        return (losses[0], scores[0]) if len(parts) == 1 else (sum(losses), sum(scores))

    def _summed(
        self, losses: list[torch.Tensor], scores: list[torch.Tensor], asked_to_stop: bool
    ) -> list[float]:
        """Losses of some steps, then the sum of their scores and of who asks to stop, over all processes."""
        score = torch.stack(scores).sum()
        rest = torch.stack([score.double(), score.new_tensor(asked_to_stop, dtype=torch.float64)])
        return self.workers.sum(torch.cat([torch.stack(losses).double(), rest])).tolist()

    def _averaging(self, *, last: bool) -> AbstractContextManager:
        """Several processes exchange gradients after the last part of a batch only."""
        return nullcontext() if last or self.workers.size == 1 else self._shared_net.no_sync()

    def _outputs_and_loss(
        self, forward: Callable[..., torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with self._autocast():
            outputs = forward(inputs)
            return outputs, self.loss(outputs, self.task.loss_target(targets))

    def _autocast(self) -> AbstractContextManager:
        if self.recipe.amp is None:
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.recipe.amp))

    def _score(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        measure = self.task.measure
        return self._no_score if measure is None else measure.total(outputs, targets).double()

    def _mean_score(self, total: float, samples: int) -> float | None:
        targets = samples * self._targets_per_sample
        return None if self.task.measure is None else self.task.measure.finish(total / targets)

    def _check_finite(self, losses: Sequence[float]) -> None:
        for i, loss in enumerate(losses, start=self.progress.step + 1):
            if not math.isfinite(loss):
                raise TrainError(
                    f"the loss became {loss} at step {i} (epoch {self.progress.epoch + 1}): "
                    f"training diverged; try a learning rate below {self.updater.lr:g}"
                )

    def _running_means(self) -> tuple[float, float | None]:
        """Mean loss and score over the samples of the running epoch, each before its step."""
        steps, num_samples = self.progress.epoch_step, len(self.data.train_targets)
        ends = [min((i + 1) * self.batch_size, num_samples) for i in range(steps)]
        sizes = [end - i * self.batch_size for i, end in enumerate(ends)]
        losses = self.progress.step_losses[-steps:]
        total = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
        return total / ends[-1], self._mean_score(self.progress.epoch_score, ends[-1])

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.no_grad()
    def evaluate(self, part: str = "test") -> Evaluation:
        """Loss, score and predictions of the ``test`` or the ``validation`` part.

        Raises:
            TrainError: the loss is not finite.
        """
        self.workers.equalize(self.net)
        self.net.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        predictions = {}
        for number, (inputs, targets) in enumerate(self.data.batches(part)):
            if number % self.workers.size != self.workers.rank:
                continue
            outputs, loss = self._outputs_and_loss(self.net, inputs, targets)
            sums[0] += loss.double() * len(targets)
            sums[1] += self._score(outputs, targets)
            sums[2] += len(targets)
            predictions[number] = self.task.predict(outputs).cpu()
        total, score, count = self.workers.sum(sums).tolist()
        # The last step of an epoch can diverge without its own loss showing it.
        self._check_finite([total / count])
        everyones = [item for some in self.workers.gather(predictions) for item in some.items()]
        predicted = torch.cat([values for _, values in sorted(everyones, key=lambda item: item[0])])
        return Evaluation(total / count, self._mean_score(score, int(count)), predicted)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how training continues; tensors and plain values only."""
        return {
            "model": self.net.state_dict(),
            "updater": self.updater.state_dict(),
            "progress": asdict(self.progress),
            "order": self._epoch_order,
            "random": self.workers.gather(random_states(self.device)),
            "best": self._best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned, bit for bit on the same device."""
        self.net.load_state_dict(state["model"])
        self.updater.load_state_dict(state["updater"])
        self.progress = Progress(**state["progress"])
        self._epoch_order = state["order"]
        self._best = state["best"]
        restore_random_states(state["random"][self.workers.rank], self.device)
