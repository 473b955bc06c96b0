"""Cases of ``conv2d`` with bias and ReLU: shapes of LeNet, AlexNet, VGG, NiN, ResNet and MobileNet."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyops.ops.conv2d import algorithms

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Traffic, numel
from ..measure.contender import Inputs
from .tools.convolution import convolution_inputs, convolution_label


def conv_relu(input: Tensor, weight: Tensor, bias: Tensor, **options: int) -> Tensor:
    return torch.nn.functional.conv2d(input, weight, bias, **options).relu()


def margin(input: Tensor, weight: Tensor, bias: Tensor, **options: int) -> Tensor:
    return torch.nn.functional.conv2d(input, weight, bias, **options).abs()


def traffic(
    input: tuple[int, ...], weight: tuple[int, ...], output: tuple[int, ...], size: int
) -> Callable[[str], Traffic]:
    """Each pass reads two of input, weight and output (or its gradient) and writes the third.

    Backward is two passes with as many operations as forward; ReLU's gradient reads the output once more.
    """

    def of(mode: str) -> Traffic:
        x, w, y = numel(input) * size, numel(weight) * size, numel(output) * size
        flops = 2 * numel(output) * numel(weight[1:])
        if mode == FORWARD:
            return Traffic(x + w, y, flops)
        return Traffic(2 * (x + w) + 2 * y, x + w + y, 3 * flops)

    return of


class ConvolutionCase(Case):
    def algorithm(self, inputs: Inputs) -> str:
        """On the CPU: of output, input gradient and weight gradient; one name if all agree."""
        if inputs["input"].device.type != "cpu":
            return ""
        names = algorithms(inputs["input"], inputs["weight"], **self.options)
        return names[0] if len(set(names)) == 1 else ", ".join(names)


def case(
    images: int,
    channels: int,
    side: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    dtype: torch.dtype = torch.float32,
    groups: int = 1,
    **more,
) -> Case:
    shape, weight = (images, channels, side, side), (out_channels, channels // groups, kernel, kernel)
    out = (side + 2 * padding - kernel) // stride + 1
    return ConvolutionCase(
        "conv2d",
        convolution_label(shape, weight, stride, padding, groups),
        inputs=convolution_inputs(shape, weight, dtype),
        traffic=traffic(shape, weight, (images, out_channels, out, out), dtype.itemsize),
        dtype=dtype,
        differentiable=("input", "weight", "bias"),
        options={"stride": stride, "padding": padding, "groups": groups},
        pyops_options={"activation": "relu"},
        torch_call=conv_relu,
        margin=margin,
        tf32=True,
        **{"modes": (FORWARD_BACKWARD,), "channels_last": True, **more},
    )


# An optimizer's step needs both gradients; an inference only the output.
_BOTH = (FORWARD, FORWARD_BACKWARD)

CASES = [
    case(2, 1, 16, 4, 3, overhead=True, channels_last=False, modes=_BOTH),
    case(256, 1, 28, 6, 5, padding=2, quick=True),
    case(256, 6, 14, 16, 5),
    case(16, 3, 224, 96, 11, stride=4, padding=1),
    case(8, 64, 112, 64, 3, padding=1),
    case(32, 96, 54, 96, 1),
    case(32, 128, 28, 128, 3, padding=1),
    case(32, 128, 28, 128, 3, padding=1, dtype=torch.bfloat16),
    case(16, 64, 56, 128, 3, stride=2, padding=1, modes=_BOTH),
    case(16, 256, 14, 512, 3, stride=2, padding=1, modes=_BOTH),
    case(16, 3, 224, 64, 7, stride=2, padding=3, modes=_BOTH),
    case(32, 512, 7, 512, 3, padding=1, groups=512, modes=_BOTH),
    case(32, 128, 28, 128, 5, padding=2, groups=128, modes=_BOTH),
    case(32, 128, 56, 128, 3, stride=2, padding=1, groups=128, modes=_BOTH),
    case(128, 64, 56, 64, 3, padding=1, devices=("cuda",)),
    case(128, 64, 56, 64, 3, padding=1, dtype=torch.bfloat16, devices=("cuda",)),
    case(128, 256, 56, 64, 1, dtype=torch.bfloat16, devices=("cuda",)),
    case(128, 256, 28, 256, 3, padding=1, dtype=torch.bfloat16, devices=("cuda",)),
]
