"""What happens between the gradients and the new weights: penalties, clipping, optimiser, learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pyops import optim

from ..recipe import Recipe

_OPTIMIZERS = {"adam": optim.Adam, "adamw": optim.AdamW, "sgd": optim.SGD}


class Updater:
    """The optimiser of ``recipe`` for the parameters of ``net``, with penalty, clipping, schedule and loss
    scale.

    One step: :meth:`zero_grad`, :meth:`backward` for each part of the batch, :meth:`step`. Optimisers are
    torch's in their fused variants, by :mod:`pyops.optim`.
    """

    def __init__(self, net: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self._parameters = list(net.parameters())
        self._l1, self._clip_norm = recipe.l1, recipe.clip_norm
        options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        if recipe.cuda_graph:
            # A recorded step reads the learning rate, and Adam's count of steps, where they can change.
            options["lr"] = torch.tensor(recipe.lr, device=device)
            if recipe.optimizer != "sgd":
                options["capturable"] = True
        if recipe.optimizer == "sgd":
            options |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
        self.optimizer = _OPTIMIZERS[recipe.optimizer](self._parameters, **options)
        self._schedule = _schedule(self.optimizer, recipe)
        self._by_step, self._recipe = False, recipe
        # bfloat16 has float32's exponents: its gradients do not vanish, and need no scale.
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "float16")

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def plan(self, steps: int, steps_per_epoch: int) -> None:
        """Say how long the run is, which the cosine of the learning rate and its warm-up ask for."""
        recipe = self._recipe
        if recipe.schedule is None and not recipe.warm_up:
            return
        rising = round(recipe.warm_up * steps_per_epoch)

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            if recipe.schedule is None:
                return 1.0
            done = min(1.0, (step - rising) / max(1, steps - rising))
            return (1 + math.cos(math.pi * done)) / 2

        self._schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self._by_step = True

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of ``loss``."""
        self._scaler.scale(loss).backward()

    def step(self) -> None:
        """Change the parameters by the gradients; nothing happens where scaled float16 ones overflowed."""
        if self._l1 or self._clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
        if self._l1:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach().sign(), alpha=self._l1)
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._by_step:
            self._schedule.step()

    def end_epoch(self, loss: float) -> None:
        """Adapt the learning rate; ``loss`` is what a plateau is judged by."""
        if isinstance(self._schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._schedule.step(loss)
        elif self._schedule is not None and not self._by_step:
            self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next updates, as tensors and plain values."""
        schedule = {} if self._schedule is None else self._schedule.state_dict()
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": schedule,
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(rate, torch.Tensor):  # it stays on its device
                group["lr"] = rate.fill_(group["lr"])
        if self._schedule is not None:
            self._schedule.load_state_dict(state["schedule"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> Any:
    schedules = torch.optim.lr_scheduler
    if recipe.decay_every is not None:
        return schedules.StepLR(optimizer, recipe.decay_every, recipe.lr_decay)
    if recipe.decay_patience is not None:
        return schedules.ReduceLROnPlateau(optimizer, factor=recipe.lr_decay, patience=recipe.decay_patience)
    return None
