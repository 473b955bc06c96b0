"""Cases of ``conv1d`` with bias and ReLU: shapes of networks for audio (long rows) and for text."""

from __future__ import annotations

import torch
from torch import Tensor

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case
from .conv2d import traffic
from .tools.convolution import convolution_inputs


def conv_relu(input: Tensor, weight: Tensor, bias: Tensor, **options: int) -> Tensor:
    return torch.nn.functional.conv1d(input, weight, bias, **options).relu()


def margin(input: Tensor, weight: Tensor, bias: Tensor, **options: int) -> Tensor:
    return torch.nn.functional.conv1d(input, weight, bias, **options).abs()


def case(
    rows: int,
    channels: int,
    length: int,
    out_channels: int,
    kernel: int,
    dtype: torch.dtype = torch.float32,
    overhead: bool = False,
    **options: int,
) -> Case:
    """Padded on both sides, so that a stride of 1 keeps the length."""
    dilation, stride, groups = (options.get(name, 1) for name in ("dilation", "stride", "groups"))
    options["padding"] = dilation * (kernel - 1) // 2
    shape, weight = (rows, channels, length), (out_channels, channels // groups, kernel)
    out = (length + 2 * options["padding"] - dilation * (kernel - 1) - 1) // stride + 1
    given = "".join(f" {name} {value}" for name, value in options.items() if name != "padding")
    return Case(
        "conv1d",
        f"{list(shape)} -> {out_channels}, {kernel}{given}",
        inputs=convolution_inputs(shape, weight, dtype),
        traffic=traffic(shape, weight, (rows, out_channels, out), dtype.itemsize),
        dtype=dtype,
        differentiable=("input", "weight", "bias"),
        options=options,
        pyops_options={"activation": "relu"},
        torch_call=conv_relu,
        margin=margin,
        tf32=True,
        modes=(FORWARD, FORWARD_BACKWARD),
        overhead=overhead,
    )


CASES = [
    case(2, 4, 64, 4, 3, overhead=True),
    case(16, 64, 1000, 64, 3),
    case(16, 64, 1000, 64, 9),
    case(16, 64, 1000, 64, 3, dilation=4),
    case(16, 64, 1000, 128, 4, stride=2),
    case(16, 64, 1000, 64, 7, groups=64),
    case(16, 64, 1000, 64, 3, dtype=torch.bfloat16),
    case(32, 128, 200, 128, 3),
    case(32, 128, 200, 256, 1),
    case(32, 128, 200, 128, 5, groups=128),
]
