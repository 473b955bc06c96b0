"""max_pool2d for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal
from ..layouts import channels_last
from ..mutants import Mutant
from ..pooling import pair, windows_of


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    kernel = pair(kernel_size)
    geometry = kernel, pair(stride or kernel), pair(padding), pair(dilation)
    windows = windows_of(input, *geometry, ceil_mode, -torch.inf)
    return windows.gather(-1, windows.argmax(-1, keepdim=True)).squeeze(-1)


OPS = {"max_pool2d": Op(F.max_pool2d, torch.nn.functional.max_pool2d, max_pool2d, ("input",))}


def case(name: str, shape: tuple[int, ...], quick: bool = True, nhwc: bool = False, **options: Any) -> Case:
    def make(generator: torch.Generator) -> dict[str, Tensor]:
        x = normal(generator, shape)
        return {"input": channels_last(x) if nhwc else x}

    return Case(f"max_pool2d_{name}", "max_pool2d", make, options, quick)


# The paths of the CPU kernels: even strides, other strides, few channels last, many; wide positions.
SMOKE = [
    case("3x3s2", (2, 3, 13, 75), kernel_size=3, stride=2, padding=1),
    case("2x2", (1, 2, 6, 70), kernel_size=2),
    case("general", (2, 2, 17, 40), kernel_size=(3, 4), stride=(1, 3), padding=(1, 2), dilation=(2, 1)),
    case("few_channels", (2, 3, 9, 11), nhwc=True, kernel_size=3, stride=2, padding=1, ceil_mode=True),
    case("channels", (2, 77, 5, 6), nhwc=True, kernel_size=3, stride=2, padding=1),
    case("overhang", (1, 2, 3, 36), kernel_size=2, stride=3, ceil_mode=True),
    case("wide", (1, 2, 20, 19), kernel_size=(16, 17), stride=1, padding=3),
]


def _first_of_equal_elements_wins(backend: Any) -> None:
    for shape in [(1, 2, 6, 70), (1, 20, 4, 5)]:
        x = torch.randint(0, 2, shape).float().contiguous(memory_format=torch.channels_last)
        x[0, 0, 0] = torch.nan
        for tensor in (x, x.contiguous()):
            found = F.max_pool2d(tensor.to(backend.device), 3, 2, 1, return_indices=True)
            wanted = torch.nn.functional.max_pool2d(tensor, 3, 2, 1, return_indices=True)
            torch.testing.assert_close(found[0].cpu(), wanted[0], rtol=0, atol=0, equal_nan=True)
            assert torch.equal(found[1].cpu(), wanted[1])


SMOKE_CHECKS = {"first_of_equal_elements_wins": _first_of_equal_elements_wins}


def valid_arguments() -> dict[str, tuple]:
    windows = ([3, 2], [2, 1], [1, 0], [1, 1], False, False)
    grad, argmax = torch.randn(2, 2, 4), torch.zeros(2, 2, 4, dtype=torch.uint8)
    return {
        "max_pool2d_forward": (torch.randn(2, 3, 5), *windows),
        "max_pool2d_backward": (grad, argmax, [3, 5], *windows),
        "max_pool2d_indices": (argmax, [3, 5], *windows),
    }


MUTANTS = {
    "max_pool_lets_ties_go_to_the_last": Mutant(
        "cpu/pooling/position_lanes.h", "(x.v > value.v) |", "(x.v >= value.v) |", ("pooling/max_pool2d",)
    ),
    "max_pool_forgets_nan": Mutant(
        "cpu/pooling/position_lanes.h",
        "(x.v > value.v) | (x.v != x.v);",
        "x.v > value.v;",
        ("pooling/max_pool2d",),
    ),
    "ceil_mode_keeps_a_window_behind_the_image": Mutant(
        "math/pooling.h",
        "(out - 1) * stride >= in + padding",
        "(out - 1) * stride > in + padding",
        ("pooling/max_pool2d",),
    ),
    "max_pool_keeps_rows_of_another_image": Mutant(
        "cpu/pooling/strided_rows.h",
        "if (row_[slot] != row) {",
        "if (row_[slot] < 0) {",
        ("pooling/max_pool2d",),
    ),
    "max_pool_gradient_takes_the_wrong_tap": Mutant(
        "cpu/pooling/max_pool_channels.h",
        "row_tap * width_.kernel + tap}",
        "row_tap * width_.kernel + tap + 1}",
        ("pooling/max_pool2d",),
    ),
}
