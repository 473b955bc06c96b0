"""avg_pool2d and adaptive_avg_pool2d for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal
from ..layouts import channels_last
from ..mutants import Mutant
from ..pooling import pair, windows_of


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    kernel, paddings = pair(kernel_size), pair(padding)
    geometry = kernel, pair(stride or kernel), paddings, (1, 1)
    sums = windows_of(input, *geometry, ceil_mode, 0.0).sum(-1)
    if divisor_override is not None:
        return sums / divisor_override
    # What is counted is 1: the image and maybe the padding, but nothing behind the padding.
    counted = torch.ones_like(input[..., :, :]).detach()
    if count_include_pad:
        h, w = paddings
        counted = torch.nn.functional.pad(counted, (w, w, h, h), value=1.0)
        return sums / _counts(counted, geometry, sums)
    return sums / windows_of(counted, *geometry, ceil_mode, 0.0).sum(-1)


def _counts(counted: Tensor, geometry: tuple, sums: Tensor) -> Tensor:
    """Ones per window where ``counted`` has its padding already."""
    kernel, stride = geometry[:2]
    height, width = sums.shape[-2:]
    grown = [(n - 1) * stride[i] + kernel[i] for i, n in enumerate((height, width))]
    behind = [max(0, grown[i] - counted.shape[i - 2]) for i in range(2)]
    counted = torch.nn.functional.pad(counted, (0, behind[1], 0, behind[0]))
    windows = counted.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1])
    return windows.sum((-2, -1))[..., :height, :width]


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    sizes = output_size if isinstance(output_size, tuple) else (output_size, output_size)
    averages = input
    for dim, size in zip((-2, -1), sizes, strict=True):
        n = input.shape[dim]
        size = n if size is None else size
        pieces = [
            averages.narrow(dim, o * n // size, -(-(o + 1) * n // size) - o * n // size).mean(
                dim, keepdim=True
            )
            for o in range(size)
        ]
        averages = torch.cat(pieces, dim) if pieces else averages.narrow(dim, 0, 0)
    return averages


OPS = {
    "avg_pool2d": Op(F.avg_pool2d, torch.nn.functional.avg_pool2d, avg_pool2d, ("input",)),
    "adaptive_avg_pool2d": Op(
        F.adaptive_avg_pool2d, torch.nn.functional.adaptive_avg_pool2d, adaptive_avg_pool2d, ("input",)
    ),
}


def case(
    op: str, name: str, shape: tuple[int, ...], quick: bool = True, nhwc: bool = False, **options: Any
) -> Case:
    def make(generator: torch.Generator) -> dict[str, Tensor]:
        x = normal(generator, shape)
        return {"input": channels_last(x) if nhwc else x}

    return Case(f"{op}_{name}", op, make, options, quick)


SMOKE = [
    case("avg_pool2d", "2x2", (2, 3, 8, 70), kernel_size=2),
    case("avg_pool2d", "3x3s2", (2, 3, 10, 42), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    case(
        "avg_pool2d",
        "inside",
        (1, 2, 9, 41),
        kernel_size=(3, 5),
        stride=3,
        padding=1,
        count_include_pad=False,
    ),
    case("avg_pool2d", "few_channels", (2, 3, 7, 9), nhwc=True, kernel_size=3, stride=1, padding=1),
    case("avg_pool2d", "channels", (2, 37, 7, 6), nhwc=True, kernel_size=2, divisor_override=3),
    case("adaptive_avg_pool2d", "global", (2, 3, 7, 7), output_size=1),
    case("adaptive_avg_pool2d", "one_row", (2, 3, 5, 7), output_size=(1, 3)),
    case("adaptive_avg_pool2d", "uneven", (2, 3, 7, 10), output_size=(3, 4)),
    case("adaptive_avg_pool2d", "channels", (2, 37, 5, 7), nhwc=True, output_size=(2, 3)),
]


def valid_arguments() -> dict[str, tuple]:
    windows = ([3, 2], [2, 1], [1, 0], False, True, None, False)
    return {
        "avg_pool2d_forward": (torch.randn(2, 3, 5), *windows),
        "avg_pool2d_backward": (torch.randn(2, 2, 4), [3, 5], *windows),
        "adaptive_avg_pool2d_forward": (torch.randn(2, 3, 5), [2, 3], False),
        "adaptive_avg_pool2d_backward": (torch.randn(2, 2, 3), [3, 5], False),
    }


MUTANTS = {
    "average_counts_what_is_behind_the_padding": Mutant(
        "math/pooling.h",
        "smaller(begin + axis.kernel, axis.in + axis.padding) - begin",
        "axis.kernel",
        ("pooling/avg_pool2d",),
    ),
    "adaptive_windows_do_not_overlap": Mutant(
        "math/pooling.h",
        "quotient_up((k + 1) * n, m)",
        "quotient((k + 1) * n, m)",
        ("pooling/avg_pool2d",),
    ),
    "average_gradient_repeats_the_row_of_another_image": Mutant(
        "cpu/pooling/avg_pool2d.cpp",
        "image == last_image_ && rows",
        "last_image_ >= 0 && rows",
        ("pooling/avg_pool2d",),
    ),
}
