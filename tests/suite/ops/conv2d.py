"""conv2d for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal
from ..mutants import Mutant

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


# Every kernel and every path of the driver: many and few output channels, several blocks of channels, phases
# of a stride, groups that share a tile, 1x1 as one long row; sizes end inside vectors and micro-tiles.
SMOKE = [
    case("many", (2, 37, 9, 19), 41, 3, padding=1, activation="relu"),
    case("few", (3, 2, 11, 37), 3, 5, padding=2, activation="relu"),
    case("strided", (2, 3, 23, 29), 17, (5, 4), stride=(3, 2), padding=2),
    case("dilated", (1, 18, 13, 12), 5, 3, dilation=2, stride=2, padding=3, residual=True, activation="silu"),
    case("one_by_one", (2, 19, 7, 11), 23, 1, residual=True, activation="relu"),
    case("depthwise", (2, 21, 9, 35), 21, 3, padding=1, groups=21, activation="relu"),
    case("grouped", (2, 34, 6, 7), 38, (1, 3), groups=2, bias=False),
]


def valid_arguments() -> dict[str, tuple]:
    x, w = torch.randn(2, 4, 5, 6), torch.randn(6, 2, 3, 2)
    y = torch.randn(2, 6, 5, 3)
    geometry = ([1, 2], [1, 0], [1, 1], 2, 1, 0.0, 0.0)
    return {
        "conv2d_forward": (x, w, torch.randn(6), y, *geometry, True),
        "conv2d_backward": (y, x, w, y, *geometry, True, True, True, True, True),
    }


MUTANTS = {
    "conv2d_gradient_forgets_the_padding": Mutant(
        "math/conv2d.h",
        "phase + a.padding - k * a.dilation;",
        "phase - k * a.dilation;",
        ("conv2d",),
    ),
    "conv2d_slab_takes_what_lies_before_the_row": Mutant(
        "cpu/conv2d_slab.h",
        "begin = first >= 0 ? 0 :",
        "begin = first >= -1 ? 0 :",
        ("conv2d", "conv2d_correlate"),
    ),
    "conv2d_blocks_of_channels_overwrite_each_other": Mutant(
        "cpu/conv2d_kernels.h",
        "if (accumulate) sum[j] += load<Acc>(to).v;",
        "",
        ("conv2d", "conv2d_correlate"),
    ),
    "conv2d_chunks_of_pixels_are_lost": Mutant(
        "cpu/conv2d_weight.h",
        "for (int64_t chunk = 1; chunk < chunks_.parts; ++chunk) {",
        "for (int64_t chunk = 2; chunk < chunks_.parts; ++chunk) {",
        ("conv2d",),
    ),
}
