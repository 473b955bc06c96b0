"""avg_pool2d and adaptive_avg_pool2d for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import SLOW, THOROUGH
from ..cases import Case, Op, normal
from ..contract import FLOAT, Contract, bad, over
from ..cuda_code import PACKS
from ..layouts import channels_last
from ..mutants import Mutant
from ..pooling import pair, windows_of
from ..triton_cases import F16, F32, F64, meta


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


_OPTIONS: list[tuple[Any, ...]] = [  # kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
    (2, None, 0, False, True, None), (3, 2, 1, True, True, None), (3, 2, 1, True, False, None),
    ((3, 4), (1, 3), (1, 2), True, True, None), (3, 1, 1, False, True, 5), (2, 3, 1, True, False, -3),
    ((5, 1), (2, 2), (2, 0), False, False, None), (5, 4, 2, True, True, None),
]  # fmt: skip
_NAMES = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_SIZES = [1, 2, (3, 5), (None, 4), (1, 3), (11, 9), (20, 1)]
_SWEEP = [
    case(
        "avg_pool2d", f"{'x'.join(map(str, shape))}_{'_'.join(map(str, values))}".replace(" ", ""), shape,
        quick=i % 3 == 1 and len(shape) == 4, **dict(zip(_NAMES, values, strict=True)),
    )
    for i, values in enumerate(_OPTIONS)
    for shape in [(2, 3, 9, 12), (3, 11, 38)]
] + [
    case(
        "adaptive_avg_pool2d", f"{'x'.join(map(str, shape))}_{size}".replace(" ", ""), shape,
        quick=i < 3 and len(shape) == 4, output_size=size,
    )
    for i, size in enumerate(_SIZES)
    for shape in [(2, 3, 8, 7), (3, 11, 38)]
]  # fmt: skip
SMALL = [
    case("avg_pool2d", "compact", (1, 2, 5, 7), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    case("avg_pool2d", "compact_nhwc", (1, 3, 4, 5), nhwc=True, kernel_size=2, stride=1),
    case("adaptive_avg_pool2d", "compact", (1, 2, 5, 7), output_size=(2, 3)),
    case("adaptive_avg_pool2d", "compact_nhwc", (1, 3, 4, 5), nhwc=True, output_size=1),
]
_IMAGE, _ROWS = torch.zeros(1, 2, 30, 31), torch.zeros(2, 6, 7)
_OUT = torch.zeros(2, 3, 3)
_WINDOWS = ([2, 2], [2, 2], [0, 0], False, True, None, False)


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(_SWEEP, [torch.float32, torch.float16])
    + over(SMOKE, backends=THOROUGH)
    + over(SMOKE, [torch.bfloat16], SLOW),
    strided_input=over(
        [
            case("avg_pool2d", "layout", (2, 5, 6, 7), kernel_size=3, stride=2, padding=1),
            case("adaptive_avg_pool2d", "layout", (2, 5, 6, 7), output_size=(2, 3)),
        ]
    ),
    opcheck=over(SMALL, FLOAT),
    compile=over(SMALL, FLOAT),
    same_bits=over(
        [
            case("avg_pool2d", "threads", (3, 5, 61, 67), quick=False, kernel_size=3, stride=2, padding=1),
            case(
                "avg_pool2d",
                "threads_nhwc",
                (2, 33, 61, 31),
                quick=False,
                nhwc=True,
                kernel_size=3,
                padding=1,
            ),
            case("adaptive_avg_pool2d", "threads", (3, 50, 31, 27), quick=False, output_size=1),
            case("adaptive_avg_pool2d", "runs", (1, 2, 5, 7), output_size=2),
        ],
        FLOAT,
    ),
    autocast=over(SMALL[::2]),
    raw_op_refuses=[
        ("avg_pool2d_forward", (_ROWS.mT, *_WINDOWS)),
        ("avg_pool2d_forward", (_ROWS.long(), *_WINDOWS)),
        ("avg_pool2d_forward", (_ROWS, [2, 2, 2], *_WINDOWS[1:])),
        ("avg_pool2d_forward", (_ROWS, *_WINDOWS[:5], 0, False)),
        ("avg_pool2d_backward", (_OUT, [6, 8], *_WINDOWS)),
        ("avg_pool2d_backward", (_OUT.mT, [6, 7], *_WINDOWS)),
        ("avg_pool2d_backward", (_OUT, [6, -7], *_WINDOWS)),
        ("adaptive_avg_pool2d_forward", (_ROWS, [1], False)),
        ("adaptive_avg_pool2d_forward", (_ROWS, [1, -1], False)),
        ("adaptive_avg_pool2d_forward", (_ROWS, [1, 1], True)),
        ("adaptive_avg_pool2d_backward", (_OUT, [0, 7], False)),
        ("adaptive_avg_pool2d_backward", (_OUT.int(), [6, 7], False)),
        ("adaptive_avg_pool2d_backward", (_OUT, [6, 2**60], False)),
    ],
    bad_arguments=[
        *bad(
            "avg_pool2d",
            (TypeError, "input must be a Tensor, got list", ([1.0], 2)),
            (ValueError, "only the batch may be empty", (torch.zeros(9, 0, 30, 31), 2)),
            (ValueError, "padding must be at most half", (_IMAGE, 2, 2, 2)),
            (ValueError, "kernel_size .* must fit", (_IMAGE, 32)),
            (ValueError, "divisor_override .* got 0", (_IMAGE, 2, 2, 0, False, True, 0)),
        ),
        *bad(
            "adaptive_avg_pool2d",
            (ValueError, "input must have shape", (torch.zeros(30, 40), 2)),
            (ValueError, "only the batch", (torch.zeros(9, 2, 0, 31), 2)),
            (ValueError, r"output_size must be in \[0,.*got \[-1, -1\]", (_IMAGE, -1)),
            (ValueError, "output_size must be one number or two", (_IMAGE, (1, 2, 3))),
            (TypeError, "output_size must be an integer or two", (_IMAGE, 2.0)),
        ),
    ],
)


LAYERS = {
    "AvgPool2d": [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False, "divisor_override": 7},
    ],
    "AdaptiveAvgPool2d": [{"output_size": 1}, {"output_size": (None, 2)}],
}


def valid_arguments() -> dict[str, tuple]:
    windows = ([3, 2], [2, 1], [1, 0], False, True, None, False)
    return {
        "avg_pool2d_forward": (torch.randn(2, 3, 5), *windows),
        "avg_pool2d_backward": (torch.randn(2, 2, 4), [3, 5], *windows),
        "adaptive_avg_pool2d_forward": (torch.randn(2, 3, 5), [2, 3], False),
        "adaptive_avg_pool2d_backward": (torch.randn(2, 2, 3), [3, 5], False),
    }


CUDA_CODE = {"avg_pool2d": [PACKS]}


def _triton(shape: tuple[int, ...], dtype: torch.dtype, kernel: int, channels_last: bool) -> None:
    from pyops.triton_kernels.pooling import avg_pool2d

    windows = ([kernel] * 2, [kernel] * 2, [0, 0], False, True, None, channels_last)
    y = avg_pool2d.avg_pool2d_forward(meta(*shape, dtype=dtype), *windows)
    size = list(shape[1:3] if channels_last else shape[2:])
    avg_pool2d.avg_pool2d_backward(y, size, *windows)


def _triton_adaptive(shape: tuple[int, ...], dtype: torch.dtype, output: int, channels_last: bool) -> None:
    from pyops.triton_kernels.pooling import avg_pool2d

    y = avg_pool2d.adaptive_avg_pool2d_forward(meta(*shape, dtype=dtype), [output] * 2, channels_last)
    size = list(shape[1:3] if channels_last else shape[2:])
    avg_pool2d.adaptive_avg_pool2d_backward(y, size, channels_last)


TRITON_CASES = {
    "avg_pool2d-nchw-float32": lambda: _triton((256, 6, 28, 28), F32, 2, False),
    "avg_pool2d-channels_last-float16": lambda: _triton((32, 56, 56, 64), F16, 3, True),
    "adaptive_avg_pool2d-global-float32": lambda: _triton_adaptive((32, 512, 7, 7), F32, 1, False),
    "adaptive_avg_pool2d-uneven-float64": lambda: _triton_adaptive((4, 30, 31, 64), F64, 7, True),
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
        "image != last_image_ || !(rows",
        "last_image_ < 0 || !(rows",
        ("pooling/avg_pool2d",),
    ),
}
