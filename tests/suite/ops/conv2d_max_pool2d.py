"""conv2d_max_pool2d for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal
from ..layouts import channels_last
from ..mutants import Mutant
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
