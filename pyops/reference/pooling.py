"""Pooling as torch's own ops."""

from __future__ import annotations

import torch.nn
from torch import Tensor


def max_pool2d(
    input: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maxima of windows of [C, H, W] or [N, C, H, W], with their places if ``return_indices``."""
    if return_indices:
        return torch.nn.functional.max_pool2d_with_indices(
            input, kernel, stride, padding, dilation, ceil_mode, True
        )
    return torch.max_pool2d(input, kernel, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    input: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Means of windows of [C, H, W] or [N, C, H, W]."""
    return torch.nn.functional.avg_pool2d(
        input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def adaptive_avg_pool2d(input: Tensor, output_size: list[int]) -> Tensor:
    """Means of ``output_size`` windows that divide [C, H, W] or [N, C, H, W] evenly."""
    return torch.nn.functional.adaptive_avg_pool2d(input, (output_size[0], output_size[1]))
