"""Cases of ``training_step``: one whole step of a network (forward, loss, backward, SGD).

``torch.compile`` gets network and loss. The measured steps have learning rate 0: they do all the work and
leave the parameters as they are, so that every call sees the same numbers. What is compared beforehand are
the losses of some steps that do change them and the gradients of the first, without dropout (whose masks
never repeat).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyops.models import layer_library
from torch import nn

import pyops

from ..measure.case import TRAINING_STEP, Inputs
from .tools import jax_steps
from .tools.checked_steps import CHECKED_STEPS, checked_steps
from .tools.networks import NUM_CLASSES, NetworkCase, Run

OP = "training_step"
#: A value at the corner of a ReLU, or two all but equal ones under a maximum, send a whole gradient another
#: way after one rounding: torch's own ways differ by some percent in the gradients of a few small parameters.
_LEAST_ERROR = 0.1


class Training(Run):
    """A network in training on one batch."""

    def __init__(
        self, net: nn.Module, loss: nn.Module, optimizers: Any, images: torch.Tensor, labels: torch.Tensor
    ) -> None:
        self.net = net
        self.inputs = {"images": images, "labels": labels}
        self.loss: Callable[..., torch.Tensor] = lambda images, labels: loss(net(images), labels)
        fused = images.device.type in ("cpu", "cuda")
        self.optimizer = optimizers.SGD(net.parameters(), lr=0.0, fused=fused)

    def compiled(self) -> Training:
        self.loss = torch.compile(self.loss, dynamic=False)
        return self

    def call(self) -> tuple[torch.Tensor, ...]:
        """One training step; its loss."""
        self.optimizer.zero_grad()
        loss = self.loss(self.inputs["images"], self.inputs["labels"])
        loss.backward()
        self.optimizer.step()
        return (loss.detach(),)

    def check(self) -> tuple[torch.Tensor, ...]:
        """The loss, how it changes over some steps from the initial parameters and statistics (put back
        afterwards), and the gradients of the first step."""
        initial = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        self._use_dropout(False)
        first = self.call()[0]
        gradients = [parameter.grad for parameter in self.net.parameters()]
        checked = checked_steps(first, gradients, self._call_with_rate)
        self._use_dropout(True)
        self.net.load_state_dict(initial)
        return checked

    def _call_with_rate(self, lr: float) -> torch.Tensor:
        group = self.optimizer.param_groups[0]
        group["lr"] = lr
        loss = self.call()[0]
        group["lr"] = 0.0
        return loss

    def _use_dropout(self, used: bool) -> None:
        for module in self.net.modules():
            if isinstance(module, nn.Dropout):
                module.train(used)


@dataclass(frozen=True)
class StepCase(NetworkCase):
    """A case whose contenders are networks in training."""

    def pyops_call(self) -> Callable[..., torch.Tensor]:
        return self.run("pyops", self.build("cpu")).loss

    def eager_call(self) -> Callable[..., torch.Tensor]:
        return self.run("torch", self.build("cpu")).loss

    def labels(self, mode: str) -> list[str]:
        names = dict(self.run("torch", self.build("cpu")).net.named_parameters())
        return [
            "loss",
            f"changes of the loss over {CHECKED_STEPS} steps",
            *(f"gradient of {name}" for name in names),
        ]

    def run(self, library: str, inputs: Inputs, dtype: torch.dtype | None = None) -> Training:
        dtype = dtype or self.dtype
        images = inputs["images"]
        images = images.to(dtype) if images.is_floating_point() else images
        loss = layer_library(library).CrossEntropyLoss()
        optimizers = pyops.optim if library == "pyops" else torch.optim
        net = self.make_network(library, images, dtype=dtype)
        return Training(net, loss, optimizers, images, inputs["labels"])

    def extra_runs(self, names: Sequence[str], inputs: Inputs) -> dict[str, Run]:
        if "jax" not in names or not jax_steps.knows(self.network):
            return {}
        return {"jax": jax_steps.JaxTraining(self.network, self.run("torch", inputs))}


def text_case(network: str, batch: int, length: int, characters: int) -> StepCase:
    """A language model on ``batch`` texts of that length, in an alphabet of so many ``characters``."""

    def inputs(device: torch.device) -> Inputs:
        drawn = torch.randint(characters, (batch, length + 1), device=device)
        return {"images": drawn[:, :-1].contiguous(), "labels": drawn[:, 1:].contiguous()}

    return StepCase.of(
        OP,
        TRAINING_STEP,
        network,
        (batch, length),
        {},
        inputs=inputs,
        least_error=_LEAST_ERROR,
        num_classes=characters,
        reads_text=True,
    )


def case(
    network: str, batch: int, side: int, *, channels: int = 1, channels_last: bool = True, **options: Any
) -> StepCase:
    shape = (batch, channels, side, side)

    def inputs(device: torch.device) -> Inputs:
        return {
            "images": torch.rand(shape, device=device),
            "labels": torch.randint(NUM_CLASSES, (batch,), device=device),
        }

    return StepCase.of(
        OP,
        TRAINING_STEP,
        network,
        shape,
        options,
        inputs=inputs,
        least_error=_LEAST_ERROR,
        channels_last=channels_last,
    )


CASES = [
    case("mlp", 256, 28, channels_last=False),
    case("lenet", 256, 28),
    case("alexnet", 8, 224),
    case("vgg11", 4, 224, width=4),
    case("nin", 8, 224),
    case("resnet18", 16, 96, channels=3),
    text_case("rnn", 32, 35, 28),
]
