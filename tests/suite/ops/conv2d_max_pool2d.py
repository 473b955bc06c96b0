"""conv2d_max_pool2d for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import BACKENDS, CPP, CUDA_SOURCES
from ..cases import Case, Op, name_of, normal, pairwise
from ..contract import BOTH, FLOAT, Contract, bad, over
from ..layouts import LAYOUTS, channels_last
from ..mutants import Mutant
from ..triton_cases import BF16, F16, F32, F64, meta
from . import conv2d, max_pool2d


def _after_each_other(convolution: Any, pool: Any) -> Any:
    def function(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        kernel_size: Any,
        pool_stride: Any = None,
        pool_padding: Any = 0,
        pool_dilation: Any = 1,
        ceil_mode: bool = False,
        **options: Any,
    ) -> Tensor:
        y = convolution(input, weight, bias, **options)
        return pool(y, kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)

    return function


unfused = _after_each_other(conv2d.torch_conv2d, torch.nn.functional.max_pool2d)
formula = _after_each_other(conv2d.formula, max_pool2d.max_pool2d)

OPS = {"conv2d_max_pool2d": Op(F.conv2d_max_pool2d, unfused, formula, ("input", "weight", "bias"))}


def case(
    name: str,
    input: tuple[int, ...],
    out_channels: int,
    kernel: int | tuple[int, int],
    pool: int | tuple[int, int],
    *,
    bias: bool = True,
    nhwc: bool = False,
    quick: bool = True,
    **options: Any,
) -> Case:
    """A convolution of an ``input`` of that shape, values around 1, and windows of ``pool``."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        x = normal(generator, input, 1.0)
        weight = normal(generator, (out_channels, input[1] // options.get("groups", 1), *sides), 0.5)
        tensors = {"input": channels_last(x) if nhwc else x, "weight": weight}
        return {**tensors, "bias": normal(generator, (out_channels,), 1.0)} if bias else tensors

    options["kernel_size"] = pool
    return Case(f"conv2d_max_pool2d_{name}", "conv2d_max_pool2d", make, options, quick)


# Both layouts of the sums and both of the output; windows that meet, overlap, leave gaps and hang over;
# activations that save nothing, their output and their input; tiles that cut rows and columns.
SMOKE = [
    case("many", (2, 37, 9, 19), 41, 3, 2, padding=1, activation="relu"),
    case("many_nhwc", (2, 19, 9, 21), 35, 3, 3, nhwc=True, pool_stride=2, pool_padding=1, activation="relu"),
    case("few", (3, 2, 11, 37), 3, 5, 2, padding=2, activation="relu"),
    case("few_nhwc", (1, 2, 11, 37), 3, 3, (3, 2), nhwc=True, pool_stride=(2, 1), activation="sigmoid"),
    case("gaps", (2, 3, 23, 29), 17, 3, 2, pool_stride=3, ceil_mode=True, activation="silu"),
    case("dilated", (1, 5, 17, 21), 5, 3, 3, stride=2, padding=3, pool_dilation=2, pool_padding=1,
         activation="gelu"),
    case("plain", (2, 3, 9, 11), 20, 1, 2, ceil_mode=True),
    case("depthwise", (2, 21, 9, 35), 21, 3, 2, padding=1, groups=21, activation="relu"),
    case("columns_cut", (1, 2, 5, 1203), 3, 3, 3, pool_stride=2, activation="relu"),
    case("rows_cut", (1, 3, 70, 90), 66, 3, 3, padding=1, pool_stride=2, activation="relu", quick=False),
]  # fmt: skip


def _dead_windows_take_no_gradient(backend: Any) -> None:
    """Where ReLU's maximum is 0 the gradient is 0, for the bias too, and elsewhere the first maximum's."""
    for channels in (2, 40):
        x = torch.randint(-1, 2, (2, channels, 8, 18)).double()
        w = torch.ones(channels, 1, 1, 1).double()
        leaves = [t.to(backend.device).requires_grad_() for t in (x, w, torch.zeros(channels).double())]
        for tensors in (leaves, [channels_last(leaves[0]), *leaves[1:]]):
            y = F.conv2d_max_pool2d(*tensors, groups=channels, activation="relu", kernel_size=(1, 2))
            wanted = unfused(*tensors, groups=channels, activation="relu", kernel_size=(1, 2))
            upstream = torch.randn_like(wanted)
            pairs = [torch.autograd.grad(t, leaves, upstream) for t in (y, wanted)]
            torch.testing.assert_close(y, wanted, rtol=0, atol=0)
            torch.testing.assert_close(*pairs)


SMOKE_CHECKS = {"dead_windows_take_no_gradient": _dead_windows_take_no_gradient}


_FULL = [b for b in BACKENDS if b.thorough or b in CUDA_SOURCES]
_OTHERS = [b for b in BACKENDS if b not in _FULL]
_OPTIONS = pairwise(
    kernel=[(3, 3), (1, 1), (5, 2)],
    stride=[(1, 1), (2, 1), (1, 4)],
    padding=[(0, 0), (1, 2)],
    dilation=[(1, 1), (2, 2)],
    groups=[1, 2, 6],
    channels=[(6, 6), (18, 54), (54, 12)],
    bias=[True, False],
    activation=[None, "relu", "elu", "silu"],
    nhwc=[False, True],
    pool=[(2, 2), (3, 3), (1, 4)],
    pool_stride=[None, (2, 2), (1, 3), (4, 1)],
    pool_padding=[(0, 0), (0, 1)],
    pool_dilation=[(1, 1), (2, 1), (1, 3)],
    ceil_mode=[False, True],
)


def _from_options(options: dict[str, Any]) -> Case:
    options = dict(options)
    name = "options_" + name_of(options)
    channels, kernel, pool = options.pop("channels"), options.pop("kernel"), options.pop("pool")
    options["pool_padding"] = tuple(
        min(p, k // 2) for p, k in zip(options["pool_padding"], pool, strict=True)
    )
    return case(name, (2, channels[0], 13, 41), channels[1], kernel, pool, quick=False, **options)


# Sizes around those of vectors and tiles; one window, windows that are all padding but for a pixel.
_SIZES = [
    *(case(f"out_{k}", (2, 5, 7, 17), k, 3, 2, padding=1, quick=False) for k in (1, 7, 13, 16, 33, 67)),
    *(case(f"width_{w}", (2, 3, 5, w), 11, 3, 2, padding=1, quick=False) for w in (2, 13, 15, 29, 67)),
    case("one_window", (3, 5, 6, 6), 4, 3, 4),
    case("one_pixel", (3, 5, 3, 3), 4, 3, 2, pool_padding=1, quick=False),
    *(
        case(f"small_images_{h}x{w}", (13, 16, h, w), 32, 3, 2, padding=1, pool_padding=1, quick=False)
        for h, w in ((2, 6), (6, 2), (3, 4))
    ),
    case("wide_row", (1, 3, 3, 2053), 5, (2, 3), (1, 3), pool_stride=2, quick=False),
    case("high", (1, 3, 1031, 3), 5, 3, (5, 1), padding=1, pool_stride=(3, 1), quick=False),
    case("large_window", (1, 2, 31, 29), 17, 3, (15, 17), pool_stride=7, pool_padding=7, quick=False),
    case("too_large_a_window", (1, 2, 31, 29), 3, 3, (16, 16), pool_stride=5, quick=False),
    case("lenet", (3, 1, 28, 28), 6, 5, 2, padding=2, activation="sigmoid", quick=False),
    case("alexnet_stem", (1, 3, 63, 63), 96, 11, 3, stride=4, padding=1, pool_stride=2, activation="relu",
         quick=False),
    case("vgg", (1, 64, 20, 36), 64, 3, 2, padding=1, activation="relu", quick=False),
]  # fmt: skip
SMALL = [
    case("compact", (2, 4, 5, 6), 6, 3, 2, padding=1, stride=(1, 2), groups=2, activation="relu"),
    case("compact_saved", (1, 3, 4, 5), 5, 2, 2, pool_stride=1, activation="gelu"),
    case("compact_nhwc", (2, 3, 4, 5), 2, (1, 3), (2, 1), nhwc=True, dilation=(1, 2), activation="tanh"),
]
_X, _W = torch.zeros(2, 4, 5, 6), torch.zeros(6, 4, 3, 3)
_CONV = ([1, 1], [0, 0], [1, 1], 1)
_POOL = ([2, 2], [2, 2], [0, 0], [1, 1], False)
_IDENTITY, _TANH = (0, 0.0, 0.0), (4, 0.0, 0.0)
_PLAIN = (*_CONV, *_IDENTITY, *_POOL, True, False)
_Y, _ARGMAX = torch.zeros(2, 6, 1, 2), torch.zeros(2, 6, 1, 2, dtype=torch.uint8)

_FORWARD, _BACKWARD = "conv2d_max_pool2d_forward", "conv2d_max_pool2d_backward"


CONTRACT = Contract(
    small=SMALL,
    accuracy=over([*map(_from_options, _OPTIONS), *_SIZES], BOTH, [CPP])
    + over(SMOKE, backends=[CPP])
    + over([s for s in SMOKE if s.quick], FLOAT, _OTHERS),
    strided_input=over(
        [SMOKE[0], SMOKE[4]], backends=_FULL, layouts=[name for name in LAYOUTS if name != "expanded"]
    ),
    strided_upstream=over(SMOKE[:4], backends=_FULL),
    gradcheck=over(
        [
            case(f"gradcheck_{a}", (1, 2, 5, 6), 3, (2, 3), 2, pool_stride=1, padding=1, activation=a)
            for a in (None, "silu", "sigmoid")
        ],
        backends=_FULL,
    ),
    opcheck=over(SMALL, backends=[CPP]),
    no_host_sync=over(SMALL[:1]),
    compile=over(SMALL, FLOAT, _FULL),
    same_bits=over(
        [
            case("threads_many", (5, 40, 19, 31), 45, 3, 3, padding=1, pool_stride=2, activation="relu"),
            case("threads_few", (9, 3, 40, 41), 5, 3, 2, padding=1, activation="silu"),
            case("threads_nhwc", (4, 24, 20, 21), 24, 3, 2, nhwc=True, padding=1, activation="relu"),
        ],
        backends=[CPP],
    ),
    autocast=over(SMALL[:2], backends=_FULL),
    meta=over(SMALL[:1]),
    raw_op_refuses=[
        (_FORWARD, (_X[0], _W, None, *_PLAIN)),
        (_FORWARD, (_X, _W.double(), None, *_PLAIN)),
        (_FORWARD, (_X[..., ::2], _W, None, *_PLAIN)),
        (_FORWARD, (_X, _W, torch.zeros(5), *_PLAIN)),
        (_FORWARD, (_X, _W, None, *_CONV, 99, 0.0, 0.0, *_POOL, True, False)),
        (_FORWARD, (_X, _W, None, *_CONV, *_IDENTITY, [2], *_POOL[1:], True, False)),
        (_FORWARD, (_X, _W, None, *_CONV, *_IDENTITY, [4, 2], *_POOL[1:], True, False)),
        (_FORWARD, (_X, _W, None, *_CONV, *_IDENTITY, [2, 2], [0, 1], *_POOL[2:], True, False)),
        (_FORWARD, (_X, _W, None, *_CONV, *_IDENTITY, [2, 2], [2, 2], [2, 0], [1, 1], False, True, False)),
        (_BACKWARD, (_Y, _ARGMAX[:1], None, [3, 4], *_IDENTITY, True, *_POOL, True)),
        (_BACKWARD, (_Y, _ARGMAX.int(), None, [3, 4], *_IDENTITY, True, *_POOL, True)),
        (_BACKWARD, (_Y.long(), _ARGMAX, None, [3, 4], *_IDENTITY, True, *_POOL, True)),
        (_BACKWARD, (_Y, _ARGMAX, None, [3, 9], *_IDENTITY, True, *_POOL, True)),
        (_BACKWARD, (_Y, _ARGMAX, None, [3], *_IDENTITY, True, *_POOL, True)),
        (_BACKWARD, (_Y, _ARGMAX, None, [3, 2**62], *_IDENTITY, True, *_POOL, True)),
        (_BACKWARD, (_Y, _ARGMAX, None, [3, 4], *_TANH, True, *_POOL, True)),
        (_BACKWARD, (_Y, _ARGMAX, _Y[..., :1], [3, 4], *_TANH, True, *_POOL, True)),
        (_BACKWARD, (_Y, _ARGMAX, _Y.double(), [3, 4], *_TANH, True, *_POOL, True)),
        (_BACKWARD, (channels_last(_Y), _ARGMAX, None, [3, 4], *_IDENTITY, True, *_POOL, True)),
        (_BACKWARD, (_Y, _ARGMAX, None, [3, 4], 99, 0.0, 0.0, True, *_POOL, True)),
        (_BACKWARD, (_Y, _ARGMAX, None, [300, 400], *_IDENTITY, True, [300, 200], *_POOL[1:], True)),
    ],
    bad_arguments=bad(
        "conv2d_max_pool2d",
        (TypeError, "input must be a floating.*torch.int64", {"input": _X.long()}),
        (ValueError, r".*3D.*or 4D.*input of size: \[2, 4\]", {"input": _X[:, :, 0, 0]}),
        (ValueError, "groups must be at least 1, got 0", {"groups": 0}),
        (ValueError, r"bias must have shape \(6,\)", {"bias": torch.zeros(4)}),
        (ValueError, "activation must be None or one of", {"activation": "swish2"}),
        (TypeError, "kernel_size must be an integer or two, got None", {"kernel_size": None}),
        (ValueError, r"pool_stride must be in \[1, .*, got 0", {"pool_stride": 0}),
        (ValueError, r"pool_padding must be at most half of kernel_size \(2, 2\)", {"pool_padding": 2}),
        (ValueError, r"pool_dilation must be in \[1, .*, got 0", {"pool_dilation": 0}),
        (
            ValueError,
            r"kernel_size \(4, 4\) .* fit into the convolution's output .*\(3, 4\)",
            {"kernel_size": 4},
        ),
        input=_X,
        weight=_W,
        kernel_size=2,
    ),
)


def valid_arguments() -> dict[str, tuple]:
    x, w = torch.randn(2, 4, 5, 6), torch.randn(6, 2, 3, 2)
    activation, pool = (10, 0.0, 0.0), ([2, 2], [1, 2], [1, 0], [1, 1], True)
    y, argmax = torch.randn(2, 6, 6, 2), torch.zeros(2, 6, 6, 2, dtype=torch.uint8)
    geometry = ([1, 2], [1, 0], [1, 1], 2)
    return {
        "conv2d_max_pool2d_forward": (x, w, torch.randn(6), *geometry, *activation, *pool, True, True),
        "conv2d_max_pool2d_backward": (y, argmax, y, [5, 3], *activation, False, *pool, True),
    }


def run_sanitized(ops: Any) -> None:
    """Patches and windows that hang over the image on every side, in both formats."""
    generator = torch.Generator().manual_seed(0)
    cases = [
        ((2, 3, 11, 13), (19, 3, 3, 3), ([1, 1], [1, 1], [1, 1], 1), ([3, 3], [2, 2], [1, 1], [1, 1], True)),
        ((1, 16, 9, 8), (24, 16, 1, 2), ([1, 1], [0, 0], [1, 1], 1), ([2, 2], [2, 2], [0, 0], [2, 1], False)),
        ((1, 4, 9, 7), (4, 1, 3, 3), ([1, 1], [1, 1], [1, 1], 4), ([2, 3], [1, 2], [1, 1], [1, 1], True)),
        (
            (1, 3, 13, 14),
            (9, 3, 1, 1),
            ([1, 1], [0, 0], [1, 1], 1),
            ([13, 12], [1, 1], [0, 0], [1, 1], False),
        ),
    ]
    for x_shape, w_shape, geometry, pool in cases:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for format in (torch.contiguous_format, torch.channels_last):
                x = torch.rand(x_shape, generator=generator).to(dtype, memory_format=format)
                w = torch.rand(w_shape, generator=generator).to(dtype)
                bias = torch.rand(w_shape[0], generator=generator).to(dtype)
                for kind in (1, 10):
                    y, argmax, saved = ops.conv2d_max_pool2d_forward(
                        x, w, bias, *geometry, kind, 0.0, 0.0, *pool, True, True
                    )
                    conv_size = torch.nn.functional.conv2d(x, w, None, *geometry).shape[2:]
                    ops.conv2d_max_pool2d_backward(
                        y, argmax, saved, list(conv_size), kind, 0.0, 0.0, False, *pool, True
                    )


def _triton(
    shape: tuple[int, ...],
    out_channels: int,
    kernel: int,
    dtype: torch.dtype,
    channels_last: bool,
    window: int,
    window_stride: int,
    *,
    stride: int = 1,
    kind: int = 1,
) -> None:
    from pyops.triton_kernels.conv2d import conv2d_max_pool2d

    format = torch.channels_last if channels_last else torch.contiguous_format
    x = meta(*shape, dtype=dtype).to(memory_format=format)
    weight, bias = (
        meta(out_channels, shape[1], kernel, kernel, dtype=dtype),
        meta(out_channels, dtype=dtype),
    )
    geometry, activation = ([stride] * 2, [1, 1], [1, 1]), (kind, 0.0, 0.0)
    pool = ([window] * 2, [window_stride] * 2, [0, 0], [1, 1], False)
    keeps_input = kind > 5
    y, argmax, z = conv2d_max_pool2d.conv2d_max_pool2d_forward(
        x, weight, bias, *geometry, 1, *activation, *pool, True, keeps_input
    )
    size = [(side + 2 - kernel) // stride + 1 for side in shape[2:]]
    conv2d_max_pool2d.conv2d_max_pool2d_backward(
        y, argmax, z if keeps_input else y, size, *activation, not keeps_input, *pool, True
    )


TRITON_CASES = {
    "conv2d_max_pool2d-channels_last-bfloat16": lambda: _triton((64, 64, 112, 112), 64, 3, BF16, True, 2, 2),
    "conv2d_max_pool2d-few-nchw-tf32": lambda: _triton((256, 1, 28, 28), 6, 5, F32, False, 2, 2),
    "conv2d_max_pool2d-overlapping-float16": lambda: _triton(
        (64, 3, 224, 224), 96, 11, F16, False, 3, 2, stride=4
    ),
    "conv2d_max_pool2d-silu-float32": lambda: _triton((32, 64, 56, 56), 128, 3, F32, True, 2, 2, kind=10),
    "conv2d_max_pool2d-float64": lambda: _triton((4, 32, 14, 14), 64, 3, F64, False, 2, 2),
}
TRITON_PRODUCTS = {
    "conv2d_max_pool2d-(?!overlapping).*(float16|tf32)$": ["_correlate_and_pool_kernel"],
    "conv2d_max_pool2d-overlapping-": ["_correlate_kernel"],
}


MUTANTS = {
    "dead_relu_passes_a_gradient": Mutant(
        "cpu/conv2d/pool.h",
        "V(Acc(kNoGradient)), load<Acc>(positions + i)",
        "load<Acc>(positions + i), load<Acc>(positions + i)",
        ("conv2d/conv2d_max_pool2d",),
    ),
    "bias_gradient_counts_dead_windows": Mutant(
        "cpu/conv2d/conv2d_max_pool2d.cpp",
        "== dead ? none.v : grad.v",
        "== dead ? grad.v : grad.v",
        ("conv2d/conv2d_max_pool2d",),
    ),
    "pooled_tile_lacks_its_last_row": Mutant(
        "cpu/conv2d/pool.h",
        "std::min(axis_.in, start + reach + 1) - begin",
        "std::min(axis_.in, start + reach + (part == 0)) - begin",
        ("conv2d/conv2d_max_pool2d",),
    ),
    "input_of_activation_is_picked_without_dilation": Mutant(
        "cpu/conv2d/pool.h",
        "i * height.dilation * sums.row_stride",
        "i * sums.row_stride",
        ("conv2d/conv2d_max_pool2d",),
    ),
}
