"""The hyper-parameters of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import TrainError, unknown_name

OPTIMIZERS = ("adam", "adamw", "sgd")
INIT_RULES = ("constant", "he", "normal", "xavier")
AMP_DTYPES = ("bfloat16", "float16")
SCHEDULES = ("cosine",)
AUGMENTATIONS = ("crop", "flip")
_DECAY = 0.1


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        num_epochs: length of the training.
        lr, batch_size: of minibatch descent.
        loss: one that fits the network (``pyops.models.tasks.LOSSES``); None is its own.
        optimizer: one of :data:`OPTIMIZERS`; momentum and nesterov are for ``sgd`` alone.
        weight_decay: factor of the L2 penalty (for ``adamw`` its decoupled form). l1: factor of sum |w|.
            Neither is part of the losses that are shown.
        decay_every: multiply the learning rate by ``lr_decay`` after every so many epochs.
        decay_patience: or when the loss has not fallen for more than so many epochs (the validation loss
            where there is a validation part, else the training loss).
        schedule: ``"cosine"`` lets the learning rate fall to 0 along half a cosine, step by step, until the
            end of the run.
        warm_up: let it rise linearly from 0 in the first so many epochs.
        clip_norm: scale the gradients down to this norm where theirs is larger.
        accumulate: process a batch in so many parts and add up their gradients: less memory, same step.
        amp: compute in this 16-bit type where autocast allows it; ``float16`` scales the loss.
        compile: run the network through ``torch.compile``.
        cuda_graph: record a step on a GPU once and replay it: less to do for the host.
        init: one of :data:`INIT_RULES`; None leaves the network's own.
        validation: share of the training samples that is kept apart and measured after every epoch.
        early_stop: stop when the validation loss has not fallen for so many epochs, and keep the best.
        resize: side that images are resized to; None leaves them as they are.
        augment: how training images are changed at random: ``AUGMENTATIONS``, several with commas.
        options: arguments of the network's builder.
    """

    num_epochs: int
    lr: float
    batch_size: int
    loss: str | None = None
    optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    l1: float = 0.0
    lr_decay: float = _DECAY
    decay_every: int | None = None
    decay_patience: int | None = None
    schedule: str | None = None
    warm_up: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    amp: str | None = None
    compile: bool = False
    cuda_graph: bool = False
    init: str | None = None
    validation: float = 0.0
    early_stop: int | None = None
    resize: int | None = None
    augment: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The names in ``augment``."""
        return () if self.augment is None else tuple(name.strip() for name in self.augment.split(","))

    def check(self) -> None:
        """Raises TrainError for a value out of range, or for two that contradict each other."""
        for name in ("num_epochs", "batch_size", "accumulate", "decay_every", "early_stop", "resize"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainError(f"{name} must be at least 1, got {value}")
        for name in ("lr", "lr_decay", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise TrainError(f"{name} must be a positive number, got {value}")
        for name in ("weight_decay", "l1", "warm_up"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise TrainError(f"{name} must be a number of at least 0, got {value}")
        for name in ("momentum", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.decay_patience is not None and self.decay_patience < 0:
            raise TrainError(f"decay_patience must be at least 0, got {self.decay_patience}")
        self._check_names()
        self._check_pairs()

    def _check_names(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise TrainError(unknown_name("optimizer", self.optimizer, OPTIMIZERS))
        if self.init is not None and self.init not in INIT_RULES:
            raise TrainError(unknown_name("init rule", self.init, INIT_RULES))
        if self.schedule is not None and self.schedule not in SCHEDULES:
            raise TrainError(unknown_name("schedule", self.schedule, SCHEDULES))
        for name in self.augmentations:
            if name not in AUGMENTATIONS:
                raise TrainError(
                    f"augment {self.augment!r}: {unknown_name('augmentation', name, AUGMENTATIONS)}"
                )
        if self.amp is not None and self.amp not in AMP_DTYPES:
            raise TrainError(unknown_name("amp type", self.amp, AMP_DTYPES))

    def _check_pairs(self) -> None:
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise TrainError(f"momentum and nesterov are for sgd, the optimizer is {self.optimizer}")
        if self.nesterov and not self.momentum:
            raise TrainError("nesterov needs a momentum above 0")
        if self.decay_every is not None and self.decay_patience is not None:
            raise TrainError("decay_every and decay_patience exclude each other")
        decays = self.decay_every is not None or self.decay_patience is not None
        if decays and (self.schedule or self.warm_up):
            raise TrainError("schedule and warm_up exclude decay_every and decay_patience")
        if self.cuda_graph and (self.schedule or self.warm_up):
            raise TrainError("cuda_graph excludes schedule and warm_up, which change the rate at every step")
        if self.lr_decay != _DECAY and self.decay_every is None and self.decay_patience is None:
            raise TrainError("lr_decay does nothing without decay_every or decay_patience")
        if self.cuda_graph and (self.compile or self.amp == "float16"):
            # The host decides the scale of float16 losses at every step.
            raise TrainError("cuda_graph excludes compile and the amp type float16")
        if self.early_stop is not None and not self.validation:
            raise TrainError("early_stop needs a validation share above 0")
