"""Cases of ``conv2d_max_pool2d``: the first layers of LeNet, AlexNet and VGG, and one of NiN's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Traffic, numel
from .tools.convolution import convolution_inputs, convolution_label


def conv_relu_pool(
    input: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, kernel_size: int, pool_stride: int
) -> Tensor:
    y = torch.nn.functional.conv2d(input, weight, bias, stride, padding).relu()
    return torch.nn.functional.max_pool2d(y, kernel_size, pool_stride)


def margin(
    input: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, kernel_size: int, pool_stride: int
) -> Tensor:
    """How much larger the largest of a window is than the next, and than ReLU's 0; or how far below 0."""
    y = torch.nn.functional.conv2d(input, weight, bias, stride, padding)
    windows = y.unfold(2, kernel_size, pool_stride).unfold(3, kernel_size, pool_stride).flatten(-2)
    first, second = windows.topk(2).values.unbind(-1)
    return torch.where(first > 0, torch.minimum(first, first - second), -first)


def traffic(
    input: tuple[int, ...], weight: tuple[int, ...], conv: tuple[int, ...], pooled: tuple[int, ...]
) -> Callable[[str], Traffic]:
    """float32. Forward writes the pooled output and a byte beside each of its elements.

    Backward reads those bytes and the gradient and writes the convolution's gradient. Two passes with as many
    operations as forward read that and input or weight, and write the other's gradient.
    """

    def of(mode: str) -> Traffic:
        x, w, y, p = (4 * numel(shape) for shape in (input, weight, conv, pooled))
        flops = 2 * numel(conv) * numel(weight[1:])
        read, written = x + w, p + p // 4
        if mode == FORWARD:
            return Traffic(read, written, flops)
        return Traffic(2 * (x + w) + written + 2 * y, written + x + w + y, 3 * flops)

    return of


def case(
    images: int,
    channels: int,
    side: int,
    out_channels: int,
    kernel: int,
    pool: int,
    pool_stride: int,
    *,
    stride: int = 1,
    padding: int = 0,
    **more,
) -> Case:
    shape, weight = (images, channels, side, side), (out_channels, channels, kernel, kernel)
    conv = (side + 2 * padding - kernel) // stride + 1
    out = (conv - pool) // pool_stride + 1
    return Case(
        "conv2d_max_pool2d",
        f"{convolution_label(shape, weight, stride, padding)}, pool {pool}x{pool} stride {pool_stride}",
        inputs=convolution_inputs(shape, weight),
        traffic=traffic(shape, weight, (images, out_channels, conv, conv), (images, out_channels, out, out)),
        differentiable=("input", "weight", "bias"),
        options={"stride": stride, "padding": padding, "kernel_size": pool, "pool_stride": pool_stride},
        pyops_options={"activation": "relu"},
        torch_call=conv_relu_pool,
        margin=margin,
        tf32=True,
        **{"modes": (FORWARD, FORWARD_BACKWARD), "channels_last": True, **more},
    )


CASES = [
    case(2, 1, 16, 4, 3, 2, 2, overhead=True, channels_last=False),
    case(256, 1, 28, 6, 5, 2, 2, padding=2, quick=True),
    case(16, 3, 224, 96, 11, 3, 2, stride=4, padding=1),
    case(8, 64, 112, 64, 3, 2, 2, padding=1),
    case(32, 96, 54, 96, 1, 3, 2),
    case(128, 3, 224, 96, 11, 3, 2, stride=4, padding=1, devices=("cuda",)),
    case(64, 64, 112, 64, 3, 2, 2, padding=1, devices=("cuda",)),
]
