"""What the pooling ops' references and cases share."""

from __future__ import annotations

import torch
from torch import Tensor


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """The number of windows, found by placing them one after the other."""
    windows = 0
    while True:
        start = windows * stride - padding
        last = start + (kernel - 1) * dilation
        if last >= size + padding and not (ceil_mode and start < size and last - stride < size + padding - 1):
            return windows
        if start >= size and ceil_mode:
            return windows
        windows += 1


def windows_of(
    input: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
    fill: float,
) -> Tensor:
    """The elements of all windows of [..., H, W] as [..., OH, OW, kernel height * kernel width]."""
    taps = []
    for i in range(2):
        out = output_size(input.shape[i - 2], kernel[i], stride[i], padding[i], dilation[i], ceil_mode)
        starts = torch.arange(out) * stride[i]
        taps.append(starts[:, None] + torch.arange(kernel[i]) * dilation[i])
    behind = [max(0, int(taps[i].max()) + 1 - padding[i] - input.shape[i - 2]) for i in range(2)]
    padded = torch.nn.functional.pad(input, (padding[1], behind[1], padding[0], behind[0]), value=fill)
    rows, columns = taps
    picked = padded[..., rows[:, None, :, None], columns[None, :, None, :]]
    return picked.flatten(-2)
