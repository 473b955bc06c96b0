"""conv2d for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import BACKENDS, CPP, CUDA_SOURCES, TRITON
from ..cases import Case, Op, name_of, normal, pairwise
from ..contract import BOTH, FLOAT, Contract, bad, over
from ..cuda_code import Code
from ..mutants import Mutant, TritonMutant
from ..triton_cases import BF16, F16, F32, F64, fp32_precision, meta

ACTIVATIONS = {
    None: lambda x: x,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "elu": torch.nn.functional.elu,
    "gelu": torch.nn.functional.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
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
    return ACTIVATIONS[activation](output if residual is None else output + residual)


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
    return ACTIVATIONS[activation](output if residual is None else output + residual)


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


# Every kernel and every path of the driver: many and few output channels, Winograd's squares (of 4 x 4 in 16
# bits), images that share a tile, a panel of weights or a vector, several blocks of channels, phases of a
# stride, groups that share a tile, 1x1 as one long row, channels that fill 16 bytes; sizes end inside
# vectors, micro-tiles and tiles.
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
    case("image_in_each_lane", (137, 2, 6, 8), 3, 3, padding=1, activation="relu", quick=False),
    case("squares_of_four", (4, 33, 15, 16), 34, 3, padding=1, activation="relu", quick=False),
    case("squares_strided", (1, 64, 15, 16), 67, 3, stride=2, padding=1, quick=False),
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


# Backends without a kernel use the reference formula; one case shows that they get there.
_FULL = [b for b in BACKENDS if b.thorough or b in CUDA_SOURCES]
_OTHERS = [b for b in BACKENDS if b not in _FULL]
_OPTIONS = pairwise(
    kernel=[(1, 1), (3, 3), (5, 2), (1, 7)],
    stride=[(1, 1), (2, 2), (3, 1), (1, 4)],
    padding=[(0, 0), (1, 1), (2, 3)],
    dilation=[(1, 1), (2, 2), (1, 3)],
    groups=[1, 2, 6],
    channels=[(6, 6), (18, 54), (54, 12)],
    bias=[True, False],
    residual=[False, True],
    activation=[None, "relu", "elu", "silu"],
)


def _from_options(options: dict[str, Any]) -> Case:
    options = dict(options)
    name = "options_" + name_of(options)
    channels, kernel = options.pop("channels"), options.pop("kernel")
    return case(name, (2, channels[0], 11, 23), channels[1], kernel, quick=False, **options)


_PAIRWISE = [_from_options(options) for options in _OPTIONS]
# Sizes around those of vectors (4 to 16), micro-tiles and tiles; prime numbers of everything; one image, one
# channel, one pixel; kernels larger than a block of terms.
_SIZES = [
    *(case(f"out_{k}", (2, 5, 7, 17), k, 3, padding=1, quick=False) for k in (1, 2, 7, 13, 16, 31, 33, 67)),
    *(case(f"width_{w}", (2, 3, 5, w), 11, 3, padding=1, quick=False) for w in (1, 2, 13, 14, 15, 29, 67)),
    *(
        case(f"squares_{h}x{w}", (2, 16, h, w), 32, 3, padding=p, quick=False)
        for h, w, p in ((1, 67, 1), (2, 131, 1), (14, 14, 1), (9, 9, 2), (13, 37, 0), (29, 5, 1))
    ),
    case("squares_grouped", (1, 48, 12, 11), 32, 3, padding=1, groups=2, residual=True, quick=False),
    case("squares_many_channels", (1, 150, 10, 11), 160, 3, padding=1, quick=False),
    case("one_pixel", (3, 5, 1, 1), 4, 1),
    case("one_output", (2, 7, 5, 5), 19, 5, quick=False),
    case("wide_row", (1, 3, 2, 2053), 5, (2, 3), padding=(0, 1), quick=False),
    case("large_kernel", (1, 2, 23, 29), 3, (21, 19), padding=(10, 9), quick=False),
    case("many_channels", (2, 419, 5, 7), 37, 3, padding=1, quick=False),
    case("padding_beyond_the_image", (1, 3, 2, 3), 5, 2, padding=5, quick=False),
    case("stride_beyond_the_kernel", (2, 5, 17, 19), 6, 2, stride=5, quick=False),
    case("alexnet_stem", (1, 3, 63, 63), 96, 11, stride=4, padding=1, activation="relu", quick=False),
    case("depthwise_multiplier", (2, 7, 9, 17), 21, 3, groups=7, padding=1, quick=False),
]
SMALL = [
    case("compact", (2, 4, 5, 6), 6, 3, padding=1, stride=(1, 2), groups=2, activation="relu"),
    case("compact_residual", (1, 3, 4, 5), 5, 2, residual=True, activation="gelu"),
    case("compact_plain", (2, 3, 4, 5), 2, (1, 3), dilation=(1, 2)),
]
_X, _W = torch.zeros(2, 4, 5, 6), torch.zeros(6, 4, 3, 3)
_PLAIN = ([1, 1], [0, 0], [1, 1], 1, 0, 0.0, 0.0)
_Y = torch.zeros(2, 6, 3, 4)
_Y_STRIDED = torch.zeros(2, 6, 4, 3).transpose(2, 3)


CONTRACT = Contract(
    small=SMALL,
    accuracy=over([*_PAIRWISE, *_SIZES], BOTH, _FULL)
    + over(SMOKE, backends=_FULL)
    + over(SMOKE[1:2], FLOAT, _OTHERS)
    + over([TINY[0], TINY[1], TINY[-1]], [torch.float64, torch.bfloat16, torch.float16], [TRITON])
    + over(TINY, FLOAT, [TRITON]),
    strided_input=over(SMOKE, BOTH, _FULL) + over(TINY, FLOAT, [TRITON], ["channels_last"]),
    strided_upstream=over(SMOKE, backends=_FULL),
    gradcheck=over(
        [
            case(f"gradcheck_{a}", (1, 2, 4, 5), 3, (2, 3), padding=1, stride=2, residual=r, activation=a)
            for a, r in [(None, False), ("silu", True), ("sigmoid", False)]
        ],
        backends=_FULL,
    ),
    opcheck=over([*SMALL, *(c.in_layout("channels_last") for c in SMALL)], backends=[CPP]),
    no_host_sync=over(SMALL[:1]),
    compile=over(SMALL, backends=_FULL),
    same_bits=over(
        [
            case("threads_many", (5, 40, 19, 31), 45, 3, padding=1, activation="relu"),
            case("threads_few", (9, 3, 40, 41), 5, 3, padding=1, stride=2),
            case("threads_depthwise", (4, 24, 20, 21), 24, 3, padding=1, groups=24),
        ],
        backends=[CPP],
    ),
    autocast=over([SMALL[0], SMALL[2]], backends=_FULL),
    raw_op_refuses=[
        ("conv2d_forward", (_X[0], _W, None, None, *_PLAIN, False)),
        ("conv2d_forward", (_X[:, :3], _W, None, None, *_PLAIN, False)),
        ("conv2d_forward", (_X[..., ::2], _W, None, None, *_PLAIN, False)),
        ("conv2d_forward", (_X, _W.double(), None, None, *_PLAIN, False)),
        ("conv2d_forward", (_X.long(), _W.long(), None, None, *_PLAIN, False)),
        ("conv2d_forward", (_X, _W, torch.zeros(5), None, *_PLAIN, False)),
        ("conv2d_forward", (_X, _W, None, _X, *_PLAIN, False)),
        ("conv2d_forward", (_X, _W, None, _Y.to(memory_format=torch.channels_last), *_PLAIN, False)),
        ("conv2d_forward", (_X, _W, None, None, [0, 1], *_PLAIN[1:], False)),
        ("conv2d_forward", (_X, _W, None, None, [1], *_PLAIN[1:], False)),
        ("conv2d_forward", (_X, _W, None, None, [1, 1], [-1, 0], *_PLAIN[2:], False)),
        ("conv2d_forward", (_X, _W, None, None, [1, 1], [2**62, 0], *_PLAIN[2:], False)),
        ("conv2d_forward", (_X, _W, None, None, [1, 1], [0, 0], [9, 1], *_PLAIN[3:], False)),
        ("conv2d_forward", (_X, _W, None, None, *_PLAIN[:3], 0, 0, 0.0, 0.0, False)),
        ("conv2d_forward", (_X, _W, None, None, *_PLAIN[:4], 99, 0.0, 0.0, False)),
        ("conv2d_backward", (_X, _X, _W, None, *_PLAIN, True, True, True, True, False)),
        ("conv2d_backward", (_Y, _X, _W, None, *_PLAIN[:4], 1, 0.0, 0.0, True, True, True, True, False)),
        ("conv2d_backward", (_Y, _X, _W, _X, *_PLAIN[:4], 1, 0.0, 0.0, True, True, True, True, False)),
        ("conv2d_backward", (_Y_STRIDED, _X, _W, None, *_PLAIN, True, True, True, True, False)),
    ],
    bad_arguments=bad(
        "conv2d",
        (TypeError, "input must be a Tensor, got list", ([1.0], _W), {}),
        (TypeError, "input must be a floating.*torch.int64", (_X.long(), _W), {}),
        (TypeError, "weight must have the input's dtype.*float32, got torch.float64", (_X, _W.double()), {}),
        (ValueError, r".*3D.*or 4D.*input of size: \[2, 4\]", (_X[:, :, 0, 0], _W), {}),
        (ValueError, ".*input must have 8 channels", (_X, _W), {"groups": 2}),
        (ValueError, ".*input must have 3 channels.*got shape", (_X, _W[:, :3]), {}),
        (ValueError, "groups must divide the weight's 6 .*, got 4", (_X, _W[:, :1]), {"groups": 4}),
        (ValueError, "groups must be at least 1, got 0", (_X, _W), {"groups": 0}),
        (ValueError, "stride must be at least 1, got 0", (_X, _W), {"stride": 0}),
        (ValueError, r"stride must be a number or two, got \(1, 2, 3\)", (_X, _W), {"stride": (1, 2, 3)}),
        (ValueError, r"padding must be at least 0, got \(0, -1\)", (_X, _W), {"padding": (0, -1)}),
        (ValueError, "padding must be 'same', 'valid' or numbers, got 'full'", (_X, _W), {"padding": "full"}),
        (ValueError, "padding='same' needs stride 1", (_X, _W), {"padding": "same", "stride": 2}),
        (ValueError, "dilation must be at least 1, got 0", (_X, _W), {"dilation": 0}),
        (ValueError, ".*kernel's height is 3, 7 with.*most the padded input's 5", (_X, _W), {"dilation": 3}),
        (ValueError, r"bias must have shape \(6,\)", (_X, _W, torch.zeros(4)), {}),
        (ValueError, r"residual must have shape \(2, 6, 3, 4\)", (_X, _W), {"residual": _X}),
        (ValueError, "activation must be None or one of", (_X, _W), {"activation": "swish2"}),
    ),
)


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


# Matrix instructions, their loads from shared memory, and asynchronous copies into it.
_PRODUCT = Code(has=("HMMA", "LDGSTS", "LDSM"), kernels="TensorCores")
CUDA_CODE = {
    "correlate": [_PRODUCT],
    "weight": [
        Code(has=_PRODUCT.has, kernels="TensorCores(?!If)"),
        # Only TF32 operands that are not innermost are read word by word.
        Code(has=("HMMA", "LDGSTS", "LDS"), kernels="TensorCoresIf"),
    ],
    "conv2d_max_pool2d": [_PRODUCT],
}


def _triton(
    shape: tuple[int, ...],
    out_channels: int,
    kernel: int,
    dtype: torch.dtype,
    channels_last: bool = True,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    kind: int = 1,
    residual: bool = False,
    precision: str = "tf32",
) -> None:
    from pyops.triton_kernels.conv2d import conv2d

    format = torch.channels_last if channels_last else torch.contiguous_format
    x = meta(*shape, dtype=dtype).to(memory_format=format)
    weight = meta(out_channels, shape[1] // groups, kernel, kernel, dtype=dtype)
    sizes = [(size + 2 * padding - kernel) // stride + 1 for size in shape[2:]]
    y = meta(shape[0], out_channels, *sizes, dtype=dtype).to(memory_format=format)
    options = ([stride] * 2, [padding] * 2, [1, 1], groups, kind, 0.0, 0.0)
    with fp32_precision(torch.backends.cudnn.conv, precision):
        bias, from_output = meta(out_channels, dtype=dtype), kind == 1
        conv2d.conv2d_forward(x, weight, bias, y if residual else None, *options, not from_output)
        conv2d.conv2d_backward(y, x, weight, y, *options, from_output, True, True, True, residual)


TRITON_CASES = {
    "conv2d-channels_last-bfloat16": lambda: _triton((64, 256, 56, 56), 256, 3, BF16, padding=1),
    "conv2d-stem-float16": lambda: _triton((64, 3, 224, 224), 96, 11, F16, False, stride=4, padding=1),
    "conv2d-strided-residual-bfloat16": lambda: _triton(
        (64, 128, 56, 56), 256, 3, BF16, stride=2, padding=1, residual=True
    ),
    "conv2d-nchw-float16": lambda: _triton((32, 64, 112, 112), 64, 3, F16, False, padding=1),
    "conv2d-eights-bfloat16": lambda: _triton((64, 40, 28, 28), 72, 3, BF16, padding=1),
    "conv2d-eights-nchw-float16": lambda: _triton((64, 40, 14, 14), 72, 3, F16, False, padding=1),
    "conv2d-eights-pointwise-bfloat16": lambda: _triton((64, 40, 28, 28), 72, 1, BF16, False),
    "conv2d-one_by_one-nchw-tf32": lambda: _triton((128, 96, 54, 54), 96, 1, F32, False),
    "conv2d-few-nchw-tf32": lambda: _triton((256, 6, 14, 14), 16, 5, F32, False, kind=3),
    "conv2d-float32": lambda: _triton((32, 128, 28, 28), 128, 3, F32, padding=1, precision="ieee"),
    "conv2d-grouped-gelu-bfloat16": lambda: _triton((64, 128, 14, 14), 128, 3, BF16, groups=4, kind=8),
    "conv2d-depthwise-bfloat16": lambda: _triton((64, 256, 28, 28), 256, 3, BF16, padding=1, groups=256),
    "conv2d-depthwise-strided-nchw-float32": lambda: _triton(
        (64, 256, 28, 28), 256, 3, F32, False, stride=2, padding=1, groups=256
    ),
    "conv2d-float64": lambda: _triton((4, 32, 14, 14), 64, 3, F64, stride=2, padding=1),
}
TRITON_PRODUCTS = {
    "conv2d-(?!depthwise).*(float16|tf32)$": ["_correlate_kernel", "_correlate_kernel", "_weight_kernel"]
}


MUTANTS = {
    "conv2d_gradient_forgets_the_padding": Mutant(
        "math/conv2d.h",
        "phase + a.padding - k * a.dilation;",
        "phase - k * a.dilation;",
        ("conv2d/conv2d",),
    ),
    "conv2d_packed_input_takes_what_lies_before_the_row": Mutant(
        "cpu/conv2d/pack_input.h",
        "begin = first >= 0 ? 0 :",
        "begin = first >= -1 ? 0 :",
        ("conv2d/direct/direct",),
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
        ("conv2d/winograd/winograd",),
    ),
    "conv2d_chunks_of_pixels_are_lost": Mutant(
        "cpu/conv2d/weight_sums.h",
        "for (int64_t chunk = 1; chunk < chunks.parts; ++chunk) {",
        "for (int64_t chunk = 2; chunk < chunks.parts; ++chunk) {",
        ("conv2d/direct/direct",),
    ),
    "conv2d_phases_of_a_gradient_lie_in_its_first_rows": Mutant(
        "cpu/conv2d/direct/plan.h",
        "return one.h->target_first * line + one.w->target_first * range.padded;",
        "return one.w->target_first * range.padded;",
        ("conv2d/direct/direct",),
    ),
    "conv2d_lanes_begin_with_the_kernels_first_row": Mutant(
        "cpu/conv2d/image_lanes/correlation.h",
        "f((rows.first_tap + r) * line +",
        "f(r * line +",
        ("conv2d/image_lanes/image_lanes",),
    ),
    "conv2d_lanes_keep_only_the_last_batch": Mutant(
        "cpu/conv2d/image_lanes/weight_gradient.h",
        "outputs * n, accumulate);",
        "outputs * n, false);",
        ("conv2d/image_lanes/image_lanes",),
    ),
    "conv2d_winograd_of_four_loses_a_product": Mutant(
        "math/winograd.h",
        "V(8.0f) * difference_of_2 + m[5];",
        "V(8.0f) * difference_of_2;",
        ("conv2d/winograd_4x4/winograd_4x4",),
    ),
    "conv2d_winograd_in_steps_of_two_takes_the_wrong_input": Mutant(
        "math/winograd.h",
        "to[2] = d[1];",
        "to[2] = d[2];",
        ("conv2d/winograd/winograd",),
    ),
    "conv2d_depthwise_images_begin_in_the_first_column": Mutant(
        "cpu/conv2d/depthwise/channels.h",
        "(rows.begin * part.columns + columns.begin) * n;",
        "rows.begin * part.columns * n;",
        ("conv2d/depthwise/depthwise",),
    ),
    "conv2d_depthwise_chains_begin_at_the_same_row": Mutant(
        "cpu/conv2d/depthwise/weight_gradient.h",
        "input + row * row_step,",
        "input,",
        ("conv2d/depthwise/depthwise",),
    ),
}

TRITON_MUTANTS = {
    "conv2d_first_tap_of_a_phase_ignores_the_dilation": TritonMutant(
        "conv2d/tiles.py",
        "first_tap = distance // common * steps.inverse % step",
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
