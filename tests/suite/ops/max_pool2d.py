"""max_pool2d for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import SLOW, THOROUGH
from ..cases import Case, Op, normal
from ..contract import FLOAT, Contract, bad, over
from ..layouts import channels_last
from ..mutants import Mutant
from ..pooling import pair, windows_of
from ..triton_cases import BF16, F32, F64, meta


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


_OPTIONS: list[tuple[Any, ...]] = [  # kernel, stride, padding, dilation, ceil_mode
    (3, 2, 1, 1, False), (2, None, 0, 1, True), (3, 1, 1, 1, False), ((5, 2), (3, 2), (2, 1), 1, True),
    (3, (2, 3), 1, (2, 3), False), (2, 3, 1, 4, True), (1, 2, 0, 1, False), ((1, 7), 1, (0, 3), 1, False),
]  # fmt: skip
_NAMES = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_SWEEP = [
    case(
        f"{'x'.join(map(str, shape))}_{'_'.join(map(str, values))}".replace(" ", ""), shape,
        quick=i % 4 == 0 and len(shape) == 4, **dict(zip(_NAMES, values, strict=True)),
    )
    for i, values in enumerate(_OPTIONS)
    for shape in [(2, 3, 9, 12), (3, 11, 37)]
]  # fmt: skip
SMALL = [
    case("compact", (1, 2, 5, 7), kernel_size=3, stride=2, padding=1),
    case("compact_nhwc", (1, 3, 4, 5), nhwc=True, kernel_size=2, stride=1),
]
_IMAGE, _ROWS = torch.zeros(1, 2, 30, 31), torch.zeros(2, 6, 7)
_WINDOWS = ([2, 2], [2, 2], [0, 0], [1, 1], False, False)
_ARGMAX = torch.zeros(2, 3, 3, dtype=torch.uint8)


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(_SWEEP, [torch.float32, torch.float16])
    + over(SMOKE, backends=THOROUGH)
    + over(SMOKE, [torch.bfloat16], SLOW),
    strided_input=over([case("layout", (2, 5, 6, 7), kernel_size=3, stride=2, padding=1)]),
    compile=over(SMALL, FLOAT),
    same_bits=over(
        [
            case("threads", (3, 5, 61, 67), quick=False, kernel_size=3, stride=2, padding=1),
            case("threads_nhwc", (2, 33, 61, 31), quick=False, nhwc=True, kernel_size=3, padding=1),
            case("runs", (1, 2, 5, 7), kernel_size=2),
        ],
        FLOAT,
    ),
    autocast=over(SMALL[:1]),
    raw_op_refuses=[
        ("max_pool2d_forward", (_ROWS.mT, *_WINDOWS)),
        ("max_pool2d_forward", (_ROWS.long(), *_WINDOWS)),
        ("max_pool2d_forward", (_ROWS[0], *_WINDOWS)),
        ("max_pool2d_forward", (_ROWS, *_WINDOWS[:5], True)),
        ("max_pool2d_forward", (_ROWS, [2], *_WINDOWS[1:])),
        ("max_pool2d_forward", (_ROWS, [2, 0], *_WINDOWS[1:])),
        ("max_pool2d_forward", (_ROWS, [2, 2**62], *_WINDOWS[1:])),
        ("max_pool2d_forward", (_ROWS, [2, 2], [0, 1], *_WINDOWS[2:])),
        ("max_pool2d_forward", (_ROWS, [2, 2], [2, 2], [2, 0], *_WINDOWS[3:])),
        ("max_pool2d_forward", (_ROWS, [2, 2], [2, 2], [0, 0], [1, 2**31 - 1], False, False)),
        ("max_pool2d_backward", (_ROWS, _ARGMAX, [6, 7], *_WINDOWS)),
        ("max_pool2d_backward", (_ARGMAX.float(), _ARGMAX, [6, 9], *_WINDOWS)),
        ("max_pool2d_backward", (_ARGMAX.float(), _ARGMAX.int(), [6, 7], *_WINDOWS)),
        ("max_pool2d_backward", (_ARGMAX.float(), _ARGMAX, [6, 2**62], *_WINDOWS)),
        ("max_pool2d_backward", (_ARGMAX.float().mT, _ARGMAX, [6, 7], *_WINDOWS)),
        ("max_pool2d_indices", (_ARGMAX, [5, 7], *_WINDOWS)),
        ("max_pool2d_indices", (_ARGMAX.long(), [6, 7], *_WINDOWS)),
    ],
    bad_arguments=bad(
        "max_pool2d",
        (TypeError, "input must be a Tensor, got list", ([1.0], 2)),
        (ValueError, r"input must have shape .*got \(900, 2\)", (torch.zeros(900, 2), 2)),
        (ValueError, "only the batch may be empty", (torch.zeros(9, 0, 30, 31), 2)),
        (TypeError, "kernel_size must be an integer or two, got 2.0", (_IMAGE, 2.0)),
        (TypeError, "kernel_size must be an integer or two", (_IMAGE, (2, 2, 2))),
        (ValueError, r"kernel_size must be in \[1, 2147483647\], got 0", (_IMAGE, 0)),
        (ValueError, r"stride must be in \[1,", (_IMAGE, 2, 0)),
        (ValueError, r"padding must be in \[0,", (_IMAGE, 2, 2, -1)),
        (ValueError, r"padding must be at most half of kernel_size \(3, 2\)", (_IMAGE, (3, 2), 2, 2)),
        (ValueError, r"dilation must be in \[1,", (_IMAGE, 2, 2, 0, 2**62)),
        (ValueError, r"kernel_size \(3, 3\) with dilation .* must fit", (_IMAGE, 3, 1, 1, 2**30)),
        (ValueError, r"kernel_size \(33, 33\) .* must fit into the input .*\(30, 31\)", (_IMAGE, 33)),
    ),
)


LAYERS = {
    "MaxPool2d": [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (2, 3), "dilation": (1, 2), "ceil_mode": True},
    ],
}


def valid_arguments() -> dict[str, tuple]:
    windows = ([3, 2], [2, 1], [1, 0], [1, 1], False, False)
    grad, argmax = torch.randn(2, 2, 4), torch.zeros(2, 2, 4, dtype=torch.uint8)
    return {
        "max_pool2d_forward": (torch.randn(2, 3, 5), *windows),
        "max_pool2d_backward": (grad, argmax, [3, 5], *windows),
        "max_pool2d_indices": (argmax, [3, 5], *windows),
    }


def _triton(
    shape: tuple[int, ...], dtype: torch.dtype, kernel: int, stride: int, padding: int, channels_last: bool
) -> None:
    from pyops.triton_kernels.pooling import max_pool2d

    windows = ([kernel] * 2, [stride] * 2, [padding] * 2, [1, 1], False, channels_last)
    y, argmax = max_pool2d.max_pool2d_forward(meta(*shape, dtype=dtype), *windows)
    size = list(shape[1:3] if channels_last else shape[2:])
    max_pool2d.max_pool2d_backward(y, argmax, size, *windows)
    max_pool2d.max_pool2d_indices(argmax, size, *windows)


TRITON_CASES = {
    "max_pool2d-nchw-float32": lambda: _triton((32, 64, 112, 112), F32, 3, 2, 1, False),
    "max_pool2d-channels_last-bfloat16": lambda: _triton((32, 112, 112, 64), BF16, 3, 2, 1, True),
    "max_pool2d-wide-float64": lambda: _triton((4, 3, 56, 56), F64, 17, 1, 8, False),
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
