"""What the pooling ops' references and cases share."""

from __future__ import annotations

from collections.abc import Callable

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


def _random(shape: tuple[int, ...], *levels: float) -> Tensor:
    return torch.tensor(levels)[torch.randint(0, len(levels), shape)]


#: Tensors with many equal elements, or that are not all finite, by what is in them.
EXTREMES: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "ties": lambda shape: _random(shape, 0.0, 1.0, -0.0),
    "nan": lambda shape: _random(shape, torch.nan, 1.0, 2.0, 3.0, 4.0),
    "infinite": lambda shape: _random(shape, torch.inf, -torch.inf, 0.0, torch.nan),
    "only_negative_infinity": lambda shape: torch.full(shape, -torch.inf),
}

#: Forms of a [2, 8, 6, 7] tensor whose pooled outputs have the strides of torch's.
POOL_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "unbatched": lambda x: x[0],
    "unbatched_channels_last": lambda x: x.contiguous(memory_format=torch.channels_last)[0],
    "narrowed_channels_last": lambda x: x.contiguous(memory_format=torch.channels_last)[..., :5],
    "narrowed": lambda x: x[..., :5],
}
