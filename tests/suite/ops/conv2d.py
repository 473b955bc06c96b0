"""conv2d for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal
from ..mutants import Mutant, TritonMutant

_ACTIVATIONS = {
    None: lambda x: x,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "elu": torch.nn.functional.elu,
    "gelu": torch.nn.functional.gelu,
    "sigmoid": torch.sigmoid,
}


def torch_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    **options: Any,
) -> Tensor:
    output = torch.nn.functional.conv2d(input, weight, bias, **options)
    return _ACTIVATIONS[activation](output if residual is None else output + residual)


def formula(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Columns of the unfolded input times the weights."""
    images, groups_weight = input.shape[0], weight.unflatten(0, (groups, -1)).flatten(2)
    columns = torch.nn.functional.unfold(input, weight.shape[2:], dilation, padding, stride)
    columns = columns.view(images, groups, groups_weight.shape[2], columns.shape[2])
    pair = [(v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)]
    sizes = [
        (input.shape[2 + i] + 2 * pair[1][i] - pair[2][i] * (weight.shape[2 + i] - 1) - 1) // pair[0][i] + 1
        for i in range(2)
    ]
    output = (groups_weight @ columns).view(images, weight.shape[0], *sizes)
    if bias is not None:
        output = output + bias.view(-1, 1, 1)
    return _ACTIVATIONS[activation](output if residual is None else output + residual)


OPS = {"conv2d": Op(F.conv2d, torch_conv2d, formula, ("input", "weight", "bias", "residual"))}


def case(
    name: str,
    input: tuple[int, ...],
    out_channels: int,
    kernel: int | tuple[int, int],
    *,
    bias: bool = True,
    residual: bool = False,
    quick: bool = True,
    **options: Any,
) -> Case:
    """A convolution of an ``input`` of that shape, values around 1."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    groups = options.get("groups", 1)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        weight = normal(generator, (out_channels, input[1] // groups, *sides), 0.5)
        tensors = {"input": normal(generator, input, 1.0), "weight": weight}
        if bias:
            tensors["bias"] = normal(generator, (out_channels,), 1.0)
        if residual:
            plain = {k: v for k, v in options.items() if k != "activation"}
            shape = torch.nn.functional.conv2d(tensors["input"], weight, **plain).shape
            tensors["residual"] = normal(generator, tuple(shape), 1.0)
        return tensors

    return Case(f"conv2d_{name}", "conv2d", make, options, quick)


# Every kernel and every path of the driver: many and few output channels, Winograd's squares, images that
# share a tile or a panel of weights, several blocks of channels, phases of a stride, groups that share a
# tile, 1x1 as one long row, channels that fill 16 bytes; sizes end inside vectors, micro-tiles and tiles.
SMOKE = [
    case("many", (2, 37, 9, 19), 41, (3, 2), padding=1, activation="relu"),
    case("few", (3, 2, 11, 37), 3, 5, padding=2, activation="relu"),
    case("strided", (2, 3, 23, 29), 17, (5, 4), stride=(3, 2), padding=2),
    case("dilated", (1, 18, 13, 12), 5, 3, dilation=2, stride=2, padding=3, residual=True, activation="silu"),
    case("one_by_one", (2, 19, 7, 11), 23, 1, residual=True, activation="relu"),
    case("depthwise", (2, 21, 9, 35), 21, 3, padding=1, groups=21, activation="relu"),
    case("grouped", (2, 34, 6, 7), 38, (1, 3), groups=2, bias=False),
    case("packs", (2, 16, 17, 13), 72, (2, 3), padding=1, residual=True, activation="relu"),
    case("squares", (2, 70, 9, 19), 41, 3, padding=1, activation="relu", quick=False),
    case("squares_in_pieces", (1, 17, 13, 11), 41, (5, 6), padding=2, quick=False),
    case("squares_of_small_images", (9, 19, 6, 5), 41, 3, padding=1, quick=False),
    case("shared_panels", (7, 19, 6, 5), 41, 3, stride=2, padding=1, quick=False),
    case("small_images", (13, 70, 6, 5), 41, 3, stride=2, padding=1, activation="relu", quick=False),
    case("small_images_in_groups", (15, 34, 3, 2), 62, 3, padding=1, groups=2, quick=False),
]


# Every path of the Triton kernels, in few steps of few programs: Triton's interpreter is slow. Taps and
# channels apart and as one index, for each of the three products; pixels of one image and of several in a
# tile; phases with several taps, one and none; sums over pixels in several parts.
TINY = [
    case("tiny_many", (1, 33, 4, 5), 18, (3, 2), padding=1, activation="relu"),
    case("tiny_few", (2, 3, 5, 7), 5, 3, padding=2, activation="silu"),
    case("tiny_strided", (1, 17, 6, 7), 16, (3, 2), stride=(2, 3), padding=1, activation="relu"),
    case("tiny_dilated", (1, 4, 11, 10), 6, (3, 2), stride=(2, 3), dilation=2, padding=3, residual=True),
    case("tiny_stride_beyond_the_kernel", (1, 3, 7, 8), 2, 2, stride=(3, 5)),
    case("tiny_one_by_one", (2, 19, 3, 5), 23, 1, residual=True, activation="relu"),
    case("tiny_whole_images", (2, 3, 8, 8), 4, 1, activation="relu"),
    case("tiny_parts", (2, 2, 19, 23), 3, (1, 2), activation="relu"),
    case("tiny_grouped", (2, 8, 5, 4), 6, (1, 3), groups=2, bias=False, activation="elu"),
    case("tiny_depthwise", (2, 5, 7, 9), 10, 3, stride=2, padding=1, groups=5, activation="relu"),
]


def valid_arguments() -> dict[str, tuple]:
    x, w = torch.randn(2, 4, 5, 6), torch.randn(6, 2, 3, 2)
    y = torch.randn(2, 6, 5, 3)
    geometry = ([1, 2], [1, 0], [1, 1], 2, 1, 0.0, 0.0)
    return {
        "conv2d_forward": (x, w, torch.randn(6), y, *geometry, True),
        "conv2d_backward": (y, x, w, y, *geometry, True, True, True, True, True),
    }


def run_sanitized(ops: Any) -> None:
    """Tiles that end inside the image, the channels and a part of the sum, in both formats."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        ((2, 3, 11, 13), (19, 3, 5, 3), ([2, 1], [2, 1], [1, 2], 1)),
        ((2, 16, 9, 8), (72, 16, 1, 2), ([1, 1], [0, 1], [1, 1], 1)),
        ((1, 18, 5, 7), (22, 9, 3, 3), ([1, 2], [1, 0], [1, 1], 2)),
        ((2, 16, 5, 7), (16, 1, 3, 3), ([2, 2], [1, 1], [1, 1], 16)),
        ((1, 2, 6, 5), (6, 1, 2, 2), ([1, 1], [1, 1], [1, 1], 2)),
    ]
    for x_shape, w_shape, geometry in shapes:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for format in (torch.contiguous_format, torch.channels_last):
                x, w = (
                    torch.rand(s, generator=generator).to(dtype, memory_format=format)
                    for s in (x_shape, w_shape)
                )
                bias = torch.rand(w_shape[0], generator=generator).to(dtype)
                y, _ = ops.conv2d_forward(x, w, bias, None, *geometry, 1, 0.0, 0.0, False)
                ops.conv2d_forward(x, w, bias, y, *geometry, 10, 0.0, 0.0, True)
                ops.conv2d_backward(y, x, w, y, *geometry, 1, 0.0, 0.0, True, True, True, True, False)
                ops.conv2d_backward(y, x, w, None, *geometry, 0, 0.0, 0.0, True, False, False, True, True)


MUTANTS = {
    "conv2d_gradient_forgets_the_padding": Mutant(
        "math/conv2d.h",
        "phase + a.padding - k * a.dilation;",
        "phase - k * a.dilation;",
        ("conv2d/conv2d",),
    ),
    "conv2d_slab_takes_what_lies_before_the_row": Mutant(
        "cpu/conv2d/pack_input.h",
        "begin = first >= 0 ? 0 :",
        "begin = first >= -1 ? 0 :",
        ("conv2d/correlate",),
    ),
    "conv2d_blocks_of_channels_overwrite_each_other": Mutant(
        "cpu/conv2d/microkernels.cpp",
        "if (accumulate) sum[j] += load<Acc>(to).v;",
        "",
        ("conv2d/microkernels",),
    ),
    "conv2d_winograd_takes_the_wrong_sign": Mutant(
        "math/winograd.h",
        "to[2] = d[2] - d[1];",
        "to[2] = d[1] - d[2];",
        ("conv2d/correlate",),
    ),
    "conv2d_chunks_of_pixels_are_lost": Mutant(
        "cpu/conv2d/weight.h",
        "for (int64_t chunk = 1; chunk < chunks_.parts; ++chunk) {",
        "for (int64_t chunk = 2; chunk < chunks_.parts; ++chunk) {",
        ("conv2d/weight",),
    ),
}

TRITON_MUTANTS = {
    "conv2d_first_tap_of_a_phase_ignores_the_dilation": TritonMutant(
        "conv2d/tiles.py",
        "first_tap = distance // common * inverse % step",
        "first_tap = distance % step",
        "conv2d_tiny_dilated",
    ),
    "conv2d_gate_stays_open": TritonMutant(
        "conv2d/tiles.py", "y.to(acc) <= 0.0", "y.to(acc) < 0.0", "conv2d_tiny_whole_images"
    ),
    "conv2d_parts_take_the_same_pixels": TritonMutant(
        "conv2d/weight.py",
        "tl.range(part * steps, tl.minimum(part * steps + steps, blocks))",
        "tl.range(0, tl.minimum(steps, blocks))",
        "conv2d_tiny_parts",
    ),
}
