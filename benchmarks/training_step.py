"""Cases of ``training_step``: one whole step of a network (forward, loss, backward, SGD).

The networks are those of :mod:`pyops.models` with one input channel, as the notes train them; the baselines
are their torch twins: eager, eager in channels_last, and ``torch.compile`` of network and loss. The measured
steps have learning rate 0: they do all the work and leave the parameters as they are, so that every call sees
the same numbers. What is compared beforehand are the losses of some steps that do change them and the
gradients of the first, without dropout (whose masks never repeat).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pyops.models import get_network, layer_library
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pyops

from .contenders import Contender, kernel_backends, set_backend
from .registry import SEED, TRAINING_STEP, Case, Inputs, Traffic

OP = "training_step"
#: The compared steps, each meant to lower the loss by this share of it: a narrow VGG, whose gradients are
#: small, would else change it by little more than a rounding.
_CHECKED_STEPS, _CHECKED_SHARE = 3, 0.02
_NUM_CLASSES = 10
#: A value at the corner of a ReLU, or two all but equal ones under a maximum, send a whole gradient another
#: way after one rounding: torch's own ways differ by some percent in the gradients of a few small parameters.
_LEAST_ERROR = 0.1


class Training:
    """A network in training on one batch."""

    def __init__(self, net: nn.Module, loss: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.net = net
        self.images, self.labels = images, labels
        self.loss: Callable[..., torch.Tensor] = lambda images, labels: loss(net(images), labels)
        fused = images.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.0, fused=fused)

    def compiled(self) -> Training:
        self.loss = torch.compile(self.loss, dynamic=False)
        return self

    def step(self) -> tuple[torch.Tensor, ...]:
        """One training step; its loss."""
        self.optimizer.zero_grad()
        loss = self.loss(self.images, self.labels)
        loss.backward()
        self.optimizer.step()
        return (loss.detach(),)

    def check(self) -> tuple[torch.Tensor, ...]:
        """The loss, how it changes over some steps from the initial parameters (put back afterwards),
        and the gradients of the first step."""
        group = self.optimizer.param_groups[0]
        parameters = list(self.net.parameters())
        initial = [parameter.detach().clone() for parameter in parameters]
        self.net.eval()  # no dropout
        losses = [*self.step()]
        gradients = [parameter.grad for parameter in parameters]
        square = sum(gradient.double().square().sum().item() for gradient in gradients)
        group["lr"] = _CHECKED_SHARE * losses[0].item() / square
        losses += [self.step()[0] for _ in range(_CHECKED_STEPS + 1)]
        group["lr"] = 0.0
        self.net.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, initial, strict=True):
                parameter.copy_(value)
        # Beside the loss itself a missing update would be too small to see.
        changes = torch.stack(losses[2:]) - losses[0]
        return (losses[0], changes, *gradients)


@dataclass(frozen=True)
class StepCase(Case):
    """A case whose contenders are networks in training."""

    network: str = ""
    network_options: Mapping[str, Any] = field(default_factory=dict)

    def pyops_call(self) -> Callable[..., torch.Tensor]:
        return self._training("pyops", self.build("cpu")).loss

    def eager_call(self) -> Callable[..., torch.Tensor]:
        return self._training("torch", self.build("cpu")).loss

    def contenders(self, mode: str, device: torch.device, *, compiled: bool) -> list[Contender]:
        inputs = self.build(device)
        last = {**inputs, "images": inputs["images"].to(memory_format=torch.channels_last)}
        made = [
            _contender(f"pyops {backend}{suffix}", self._training("pyops", given), backend)
            for backend in kernel_backends(device)
            for suffix, given in (("", inputs), (" channels_last", last))
        ]
        made.append(_contender("eager", self._training("torch", inputs)))
        if compiled:
            made.append(_contender("compile", self._training("torch", inputs).compiled()))
        made.append(_contender("channels_last", self._training("torch", last)))
        return made

    def labels(self, mode: str) -> list[str]:
        names = dict(self._training("torch", self.build("cpu")).net.named_parameters())
        return [
            "loss",
            f"changes of the loss over {_CHECKED_STEPS} steps",
            *(f"gradient of {name}" for name in names),
        ]

    def reference(self, mode: str, device: torch.device) -> tuple[torch.Tensor, ...]:
        return self._training("torch", self.build(device), torch.float64).check()

    def _training(self, library: str, inputs: Inputs, dtype: torch.dtype | None = None) -> Training:
        layers = layer_library(library)
        images = inputs["images"].to(dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            net = get_network(self.network).build(
                tuple(images.shape[1:]), _NUM_CLASSES, layers=layers, **self.network_options
            )
        # What a user would write to make the most of each library.
        if library == "pyops":
            net = pyops.convert(net)
        net = net.to(images.device, images.dtype)
        if not images.is_contiguous():
            net = net.to(memory_format=torch.channels_last)
        return Training(net, layers.CrossEntropyLoss(), images, inputs["labels"])


def _contender(name: str, training: Training, backend: str | None = None) -> Contender:
    subject = {"subject": True, "before_block": partial(set_backend, backend)} if backend else {}
    return Contender(
        name,
        training.step,
        {"images": training.images, "labels": training.labels},
        checked=training.check,
        **subject,
    )


def traffic(network: str, images: tuple[int, ...], options: Mapping[str, Any]) -> Callable[[str], Traffic]:
    """FLOPs as torch counts them; bytes of images, parameters and gradients, which every step must move.

    Forward, backward and update read each parameter, the update its gradient, too; both are written once.
    Activations could stay in a large enough cache.
    """

    def of(mode: str) -> Traffic:
        with torch.device("meta"):
            net = get_network(network).build(images[1:], _NUM_CLASSES, layers=nn, **options)
            with FlopCounterMode(display=False) as counter:
                net(torch.empty(images)).sum().backward()
            parameters = 4 * sum(parameter.numel() for parameter in net.parameters())
        read = 4 * torch.Size(images).numel() + 4 * parameters
        return Traffic(read, 2 * parameters, counter.get_total_flops())

    return of


def case(network: str, batch: int, side: int, **options: Any) -> StepCase:
    shape = (batch, 1, side, side)

    def inputs(device: torch.device) -> Inputs:
        return {
            "images": torch.rand(shape, device=device),
            "labels": torch.randint(_NUM_CLASSES, (batch,), device=device),
        }

    width = f" width {options['width']}" if "width" in options else ""
    return StepCase(
        OP,
        f"{network}{width} {list(shape)}",
        inputs=inputs,
        traffic=traffic(network, shape, options),
        modes=(TRAINING_STEP,),
        differentiable=(),
        least_error=_LEAST_ERROR,
        channels_last=True,
        network=network,
        network_options=options,
    )


CASES = [
    case("lenet", 256, 28),
    case("alexnet", 8, 224),
    case("vgg11", 4, 224, width=4),
    case("nin", 8, 224),
]
