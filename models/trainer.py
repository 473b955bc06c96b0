"""The training loop: minibatch steps on a labelled data set, images or text, with a resumable state.

The order of the samples comes from a generator of its own, so it depends on the seed alone and not
on how many random numbers a network draws. Losses stay on the device and are fetched every
``SYNC_EVERY`` steps: the host waits for a GPU no more often than that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .checkpoint import random_states, restore_random_states
from .data import ImageData, TextData
from .errors import TrainError
from .optimization import make_optimizer
from .registry import Recipe

SYNC_EVERY = 20
_HISTORY_KEYS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
)


@dataclass
class Progress:
    """Where a run stands: plain numbers, saved with every checkpoint.

    ``epoch`` counts finished epochs, ``epoch_step`` the steps done in the running one and
    ``epoch_correct`` its correct predictions. The warm-up (the first steps of a process) is timed
    apart.
    """

    epoch: int = 0
    epoch_step: int = 0
    epoch_correct: int = 0
    step: int = 0
    timed_samples: int = 0
    timed_seconds: float = 0.0
    warm_up_samples: int = 0
    warm_up_seconds: float = 0.0
    step_losses: list[float] = field(default_factory=list)
    history: dict[str, list[float]] = field(default_factory=lambda: {key: [] for key in _HISTORY_KEYS})


# Called every SYNC_EVERY steps: samples since the last call, the epoch's loss and accuracy so far.
Report = Callable[[int, float, float], None]
# Asked after every step, with the number of steps done; True stops the training there.
Stop = Callable[[int], bool]


class Trainer:
    """A network in training.

    Args:
        net: maps images [N, C, H, W] to logits [N, num_classes], or characters [N, T] to logits
            [N, num_classes, T]; moved to ``device``.
        data: the inputs and labels; moved to ``device`` as a whole.
        recipe: the hyper-parameters.
        layers: library of ``CrossEntropyLoss`` (:mod:`pyops.nn` or :mod:`torch.nn`).
        seed: of the order of the samples.
    """

    def __init__(
        self,
        net: nn.Module,
        data: ImageData | TextData,
        recipe: Recipe,
        *,
        layers: ModuleType,
        seed: int,
        device: torch.device,
    ) -> None:
        self.net = net.to(device)
        self.data = data.to(device)
        self.batch_size = recipe.batch_size
        self.clip_norm = recipe.clip_norm
        self._labels_per_sample = math.prod(data.train_labels.shape[1:])
        self.device = device
        self.loss = layers.CrossEntropyLoss()
        self.optimizer = make_optimizer(self.net, recipe, device)
        self.progress = Progress()
        self._order = torch.Generator().manual_seed(seed)
        self._epoch_order = self._order.get_state()  # its state when the running epoch began
        self._is_warm = False

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.data.train_labels) / self.batch_size)

    def samples_after(self, step: int) -> int:
        """Samples seen in the first ``step`` steps of a run."""
        epochs, epoch_steps = divmod(step, self.steps_per_epoch)
        # Only the last batch of an epoch can be short.
        return epochs * len(self.data.train_labels) + epoch_steps * self.batch_size

    @property
    def samples_per_second(self) -> float:
        """Speed of the training steps alone; of the warm-up when there was nothing else."""
        progress = self.progress
        if progress.timed_samples > 0:
            return progress.timed_samples / progress.timed_seconds
        return progress.warm_up_samples / progress.warm_up_seconds

    def train_epoch(self, report: Report | None = None, stop: Stop | None = None) -> None:
        """Train for one epoch, or for what is left of the running one, and add it to the history.

        An epoch that ``stop`` cuts short is continued by the next call.

        Raises:
            TrainError: the loss is no longer finite.
        """
        progress = self.progress
        self._order.set_state(self._epoch_order)
        order = torch.randperm(len(self.data.train_labels), generator=self._order)
        batches = order.to(self.device).split(self.batch_size)
        self.net.train()
        stopped = False
        while progress.epoch_step < len(batches) and not stopped:
            chunk = batches[progress.epoch_step : progress.epoch_step + SYNC_EVERY]
            samples, stopped = self._train_chunk(chunk, stop)
            if report is not None:
                report(samples, *self._running_means())
        if progress.epoch_step == len(batches):
            for key, value in self._history_row(*self.evaluate()[:2]).items():
                progress.history[key].append(value)
            progress.epoch += 1
            progress.epoch_step = progress.epoch_correct = 0
            self._epoch_order = self._order.get_state()

    def history_until_now(self, test_loss: float, test_accuracy: float) -> dict[str, list[float]]:
        """The history, with a last entry for an epoch that was cut short, tested as given."""
        history = self.progress.history
        if self.progress.epoch_step == 0:
            return history
        row = self._history_row(test_loss, test_accuracy)
        return {key: [*values, row[key]] for key, values in history.items()}

    def _history_row(self, test_loss: float, test_accuracy: float) -> dict[str, float]:
        train_loss, train_accuracy = self._running_means()
        return {
            "epoch": self.progress.step / self.steps_per_epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }

    def _train_chunk(self, batches: Sequence[torch.Tensor], stop: Stop | None) -> tuple[int, bool]:
        """Some steps with one wait for the device, at the end; the samples seen, and if stopped."""
        progress = self.progress
        losses: list[torch.Tensor] = []
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        samples, stopped = 0, False
        self._synchronize()
        begin = time.perf_counter()
        for batch in batches:
            loss, hits = self._step(*self.data.train_batch(batch))
            losses.append(loss)
            correct += hits
            samples += len(batch)
            if stop is not None and stop(progress.step + len(losses)):
                stopped = True
                break
        values = torch.stack(losses).tolist()
        seconds = time.perf_counter() - begin
        self._check_finite(values)
        progress.step += len(values)
        progress.epoch_step += len(values)
        progress.epoch_correct += int(correct)
        progress.step_losses += values
        if self._is_warm:
            progress.timed_samples += samples
            progress.timed_seconds += seconds
        else:
            progress.warm_up_samples += samples
            progress.warm_up_seconds += seconds
            self._is_warm = True
        return samples, stopped

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: its loss and number of correct predictions, both 0-d on the device."""
        self.optimizer.zero_grad()
        logits = self.net(images)
        loss = self.loss(logits, labels)
        loss.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        self.optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def _check_finite(self, losses: Sequence[float]) -> None:
        for i, loss in enumerate(losses, start=self.progress.step + 1):
            if not math.isfinite(loss):
                lr = self.optimizer.param_groups[0]["lr"]
                raise TrainError(
                    f"the loss became {loss} at step {i} (epoch {self.progress.epoch + 1}): "
                    f"training diverged; try a learning rate below {lr:g}"
                )

    def _running_means(self) -> tuple[float, float]:
        """Mean loss and accuracy over the samples of the running epoch, each before its step."""
        steps, num_samples = self.progress.epoch_step, len(self.data.train_labels)
        ends = [min((i + 1) * self.batch_size, num_samples) for i in range(steps)]
        sizes = [end - i * self.batch_size for i, end in enumerate(ends)]
        losses = self.progress.step_losses[-steps:]
        total = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
        return total / ends[-1], self.progress.epoch_correct / (ends[-1] * self._labels_per_sample)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float, torch.Tensor]:
        """Mean loss, accuracy and predicted labels (int64, on the CPU) of the test data.

        Raises:
            TrainError: the loss is not finite.
        """
        self.net.eval()
        labels = self.data.test_labels
        total, predictions = torch.zeros((), dtype=torch.float64, device=self.device), []
        for images, truth in self.data.test_batches():
            logits = self.net(images)
            total += self.loss(logits, truth).double() * len(truth)
            predictions.append(logits.argmax(1))
        predicted = torch.cat(predictions)
        loss = float(total) / len(labels)
        # The last step of an epoch can diverge without its own loss showing it.
        self._check_finite([loss])
        return loss, float((predicted == labels).double().mean()), predicted.cpu()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how training continues; tensors and plain values only."""
        return {
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "order": self._epoch_order,
            "random": random_states(self.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned, bit for bit on the same device."""
        self.net.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self._epoch_order = state["order"]
        restore_random_states(state["random"], self.device)
