"""conv1d for the shared suite. Its kernels are those of conv2d, whose contract and mutants they have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import BACKENDS, CPP, CUDA_SOURCES, TRITON
from ..cases import Case, Op, normal
from ..contract import BOTH, FLOAT, Contract, bad, over
from .conv2d import ACTIVATIONS, formula


def torch_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    **options: Any,
) -> Tensor:
    output = torch.nn.functional.conv1d(input, weight, bias, **options)
    return ACTIVATIONS[activation](output if residual is None else output + residual)


def row_formula(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """That of images of height 1."""
    geometry = ((1, stride), (0, padding), (1, dilation), groups)
    above = None if residual is None else residual.unsqueeze(2)
    images = (input.unsqueeze(2), weight.unsqueeze(2), bias)
    return formula(*images, *geometry, residual=above, activation=activation).squeeze(2)


OPS = {"conv1d": Op(F.conv1d, torch_conv1d, row_formula, ("input", "weight", "bias", "residual"))}


def case(
    name: str,
    input: tuple[int, ...],
    out_channels: int,
    kernel: int,
    *,
    bias: bool = True,
    residual: bool = False,
    quick: bool = True,
    **options: Any,
) -> Case:
    """A convolution of an ``input`` of that shape, values around 1."""
    groups = options.get("groups", 1)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        weight = normal(generator, (out_channels, input[1] // groups, kernel), 0.5)
        tensors = {"input": normal(generator, input, 1.0), "weight": weight}
        if bias:
            tensors["bias"] = normal(generator, (out_channels,), 1.0)
        if residual:
            plain = {k: v for k, v in options.items() if k != "activation"}
            shape = torch.nn.functional.conv1d(tensors["input"], weight, **plain).shape
            tensors["residual"] = normal(generator, tuple(shape), 1.0)
        return tensors

    return Case(f"conv1d_{name}", "conv1d", make, options, quick)


_FULL = [b for b in BACKENDS if b.thorough or b in CUDA_SOURCES]
_OTHERS = [b for b in BACKENDS if b not in _FULL]
# Long rows and short ones, as of audio and text: strides, dilated and depthwise kernels, 1x1, one channel.
SMOKE = [
    case("audio", (2, 37, 131), 41, 7, padding=3, activation="relu"),
    case("waveform", (2, 1, 503), 13, 31, stride=4, padding=5),
    case("text", (7, 19, 23), 33, 5, padding=2, residual=True, activation="silu", quick=False),
    case("dilated", (2, 17, 61), 19, 3, dilation=4, padding=4, residual=True, activation="elu"),
    case("halved", (3, 16, 67), 37, 4, stride=2, padding=1, activation="relu", quick=False),
    case("depthwise", (2, 21, 73), 21, 5, padding=2, groups=21, activation="relu"),
    case("grouped", (2, 34, 29), 38, 3, stride=2, groups=2, bias=False, quick=False),
    case("pointwise", (2, 35, 41), 67, 1, activation="relu", quick=False),
    case("many_short_rows", (67, 33, 5), 34, 3, padding=1, quick=False),
    case("one_element", (5, 11, 1), 13, 1, quick=False),
]
TINY = [
    case("tiny", (2, 3, 11), 4, 3, padding=1, stride=2, residual=True, activation="silu"),
    case("tiny_depthwise", (2, 5, 9), 5, 3, dilation=2, groups=5),
]
SMALL = [
    case("compact", (2, 4, 9), 6, 3, padding=1, stride=2, groups=2, activation="relu"),
    case("compact_residual", (1, 3, 7), 5, 2, residual=True, activation="gelu"),
]
_X, _W = torch.zeros(2, 4, 9), torch.zeros(6, 4, 3)


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(SMOKE, BOTH, _FULL)
    + over(SMOKE[1:2], FLOAT, _OTHERS)
    + over(SMALL, [torch.float64, torch.float16], [CPP])
    + over(TINY, FLOAT, [TRITON]),
    strided_input=over(SMOKE[:1] + SMOKE[3:4], FLOAT, _FULL) + over(TINY[:1], FLOAT, [TRITON]),
    strided_upstream=over(SMOKE[:1] + SMOKE[3:4], FLOAT, _FULL),
    gradcheck=over(
        [
            case(f"gradcheck_{a}", (1, 2, 6), 3, 3, padding=1, stride=2, residual=r, activation=a)
            for a, r in [(None, False), ("silu", True), ("sigmoid", False)]
        ],
        backends=_FULL,
    ),
    opcheck=over(SMALL, backends=[CPP]),
    no_host_sync=over(SMALL[:1]),
    compile=over(SMALL[:1], backends=_FULL),
    same_bits=over([case("threads", (5, 40, 501), 45, 5, padding=2, activation="relu")], backends=[CPP]),
    autocast=over(SMALL[:1], backends=_FULL),
    bad_arguments=bad(
        "conv1d",
        (TypeError, "input must be a Tensor, got list", ([1.0], _W), {}),
        (TypeError, "input must be a floating.*torch.int64", (_X.long(), _W), {}),
        (TypeError, "weight must have the input's dtype.*float32, got torch.float64", (_X, _W.double()), {}),
        (ValueError, r".*2D.*or 3D.*conv1d.*input of size: \[2\]", (_X[:, 0, 0], _W), {}),
        (ValueError, r"weight must have shape \(K, C / groups, R\), got", (_X, _W[0]), {}),
        (ValueError, ".*input must have 8 channels", (_X, _W), {"groups": 2}),
        (ValueError, "stride must be at least 1, got 0", (_X, _W), {"stride": 0}),
        (ValueError, r"stride must be a number, got \(1, 2\)", (_X, _W), {"stride": (1, 2)}),
        (ValueError, "padding must be 'same', 'valid' or numbers, got 'full'", (_X, _W), {"padding": "full"}),
        (ValueError, "padding='same' needs stride 1", (_X, _W), {"padding": "same", "stride": 2}),
        (ValueError, ".*kernel's length is 3, 11 with.*most the padded input's 9", (_X, _W), {"dilation": 5}),
        (ValueError, r"bias must have shape \(6,\)", (_X, _W, torch.zeros(4)), {}),
        (ValueError, r"residual must have shape \(2, 6, 7\)", (_X, _W), {"residual": _X}),
        (ValueError, "activation must be None or one of", (_X, _W), {"activation": "swish2"}),
    ),
)
