"""Cases of ``inference``: the forward of a trained network in evaluation mode, without gradients.

Through ``pyops.convert`` batch normalisation becomes part of the convolutions' weights there. Its statistics
and parameters are drawn: those of a network that was never trained would leave nothing to fold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..measure.case import FORWARD, Inputs
from .tools.networks import NetworkCase, Run

OP = "inference"
#: Sums of a deep network, added in other orders: torch's own ways differ by as much.
_LEAST_ERROR = 1e-4


class Inference(Run):
    """A network in evaluation mode on one batch."""

    def __init__(self, net: nn.Module, images: torch.Tensor) -> None:
        self.net: Callable[..., torch.Tensor] = net.eval()
        self.inputs = {"images": images}

    def compiled(self) -> Inference:
        self.net = torch.compile(self.net, dynamic=False)
        return self

    def call(self) -> tuple[torch.Tensor, ...]:
        """The logits."""
        with torch.no_grad():
            return (self.net(self.inputs["images"]),)

    check = call


@dataclass(frozen=True)
class InferenceCase(NetworkCase):
    """A case whose contenders are networks in evaluation mode."""

    def pyops_call(self) -> Callable[..., torch.Tensor]:
        return self.run("pyops", self.build("cpu")).net

    def eager_call(self) -> Callable[..., torch.Tensor]:
        return self.run("torch", self.build("cpu")).net

    def run(self, library: str, inputs: Inputs, dtype: torch.dtype | None = None) -> Inference:
        dtype = dtype or self.dtype
        images = inputs["images"]
        images = images.to(dtype) if images.is_floating_point() else images  # or text
        return Inference(self.make_network(library, images, _draw_normalisation, dtype), images)


@torch.no_grad()
def _draw_normalisation(net: nn.Module) -> None:
    """Such as training leaves behind: means near zero, deviations around one."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1)
            module.bias.normal_(0, 0.1)


def case(network: str, batch: int, side: int, *, channels: int = 1, **options: Any) -> InferenceCase:
    shape = (batch, channels, side, side)

    def inputs(device: torch.device) -> Inputs:
        return {"images": torch.rand(shape, device=device)}

    return InferenceCase.of(OP, FORWARD, network, shape, options, inputs=inputs, least_error=_LEAST_ERROR)


def of_step(step: NetworkCase) -> InferenceCase:
    """The network of a training step in evaluation mode, on the same batch."""
    fields = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    return InferenceCase(**{**fields, "op": OP, "modes": (FORWARD,)})


CASES = [
    case("resnet18", 16, 96, channels=3),
    case("resnet18", 1, 224, channels=3),
]
