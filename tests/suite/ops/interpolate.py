"""interpolate (nearest) for the shared suite."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal
from ..contract import BOTH, FLOAT, Contract, bad, over, spoiled
from ..cuda_code import PACKS
from ..layouts import channels_last
from ..mutants import Mutant
from ..triton_cases import BF16, F32, F64, meta


def source_indices(input: int, output: int, factor: float | None, exact: bool) -> Tensor:
    """The input index of each output index: ATen's nearest_neighbor_(exact_)compute_source_index."""
    one = torch.ones((), dtype=torch.float32)
    scale = one * (1 / factor) if factor else (one * input) / (one * output)
    position = (torch.arange(output, dtype=torch.float32) + (0.5 if exact else 0.0)) * scale
    return position.floor().long().clamp(max=input - 1)


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    recompute_scale_factor: bool | None = None,
) -> Tensor:
    spatial = input.dim() - 2
    if size is None:
        factors = scale_factor if isinstance(scale_factor, (list, tuple)) else [scale_factor] * spatial
        sizes = [int(n * f) for n, f in zip(input.shape[2:], factors, strict=True)]
        factors = [None] * spatial if recompute_scale_factor else factors
    else:
        sizes, factors = size if isinstance(size, (list, tuple)) else [size] * spatial, [None] * spatial
    for dim, (wanted, factor) in enumerate(zip(sizes, factors, strict=True), start=2):
        index = source_indices(input.size(dim), wanted, factor, mode == "nearest-exact")
        input = input.index_select(dim, index)
    return input


OPS = {"interpolate": Op(F.interpolate, torch.nn.functional.interpolate, interpolate, ("input",))}


def case(shape: tuple[int, ...], *, last: bool = False, quick: bool = True, **options: Any) -> Case:
    """``last``: with the channels last."""

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        x = normal(generator, shape)
        return {"input": channels_last(x) if last else x}

    parts = [f"{k}={v}".replace(" ", "") for k, v in options.items()]
    name = "_".join(["x".join(map(str, shape)), *parts, *(["channels_last"] if last else [])])
    return Case(f"interpolate_{name}", "interpolate", make, options, quick)


# Rows that end inside a vector of every variant; each loop over columns.
SMOKE = [
    case((2, 3, 5, 37), scale_factor=2.0),
    case((2, 3, 5, 11), scale_factor=3.0),
    case((2, 3, 7, 19), size=(10, 31), mode="nearest-exact"),
    case((2, 37, 5, 6), scale_factor=2.0, last=True),
    case((2, 3, 4, 5, 6), size=(7, 3, 13)),
]


MODES = ("nearest", "nearest-exact")
# Integer factors with loops of their own and one without; ratios up and down; 33 columns end inside vectors.
_RESIZES = [{"scale_factor": 2.0}, {"scale_factor": 3.0}, {"scale_factor": 4}, {"scale_factor": 5.0},
            {"scale_factor": 1.0}, {"scale_factor": 1.6}, {"scale_factor": 0.5}, {"scale_factor": 0.37},
            {"size": 13}, {"size": 1}]  # fmt: skip
_OPTIONS = [
    case((2, 3, 4, 7), mode=mode, last=last, **resize)
    for mode in MODES
    for last in (False, True)
    for resize in _RESIZES
]
_SHAPES = [
    case((1, 1, 1), size=5),
    case((2, 3, 33), size=(50,)),
    case((2, 3, 33), scale_factor=2),
    case((1, 2, 3, 37), scale_factor=(2.0, 3.0)),
    case((2, 16, 3, 5), scale_factor=2.0, last=True),
    case((1, 19, 2, 3), size=(5, 4), last=True),
    case((2, 3, 3, 4, 5), scale_factor=2.0),
    case((1, 2, 4, 3, 5), size=(3, 7, 4), mode="nearest-exact"),
    case((1, 8, 2, 3, 4), size=(3, 5, 9), last=True),
    case((1, 2, 3, 5), size=(70, 4)),
    case((2, 2, 5, 6), scale_factor=(1.3, 2.7), recompute_scale_factor=True),
    case((2, 2, 5, 6), scale_factor=(1.3, 2.7), recompute_scale_factor=False),
]
_LARGE = [
    case((2, 19, 67, 129), scale_factor=2.0, quick=False),
    case((2, 19, 67, 129), scale_factor=2.0, last=True, quick=False),
    case((1, 3, 100, 90), size=(701, 333), quick=False),
    case((2, 3, 300, 400), size=(31, 77), mode="nearest-exact", quick=False),
]
_LAYOUT_CASES = [case((2, 8, 3, 4), scale_factor=2.0), case((2, 3, 4, 5, 3), size=(2, 7, 4)),
                 case((2, 3, 5), scale_factor=1.5)]  # fmt: skip
SMALL = [case((2, 8, 3, 4), scale_factor=2.0), case((2, 8, 3, 4), size=(5, 3), last=True),
            case((1, 3, 5), scale_factor=1.5, mode="nearest-exact")]  # fmt: skip


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(_OPTIONS, FLOAT)
    + over(_SHAPES)
    + over(_LARGE, BOTH)
    + over([case((0, 3, 4, 5), scale_factor=2.0), case((0, 3, 4), size=7)], FLOAT),
    strided_input=over(_LAYOUT_CASES, BOTH),
    strided_upstream=over([*_LAYOUT_CASES, case((2, 8, 3, 4), scale_factor=2.0, last=True)]),
    gradcheck=over(
        [
            case((1, 2, 3, 2), size=(4, 3)),
            case((1, 2, 3, 2), size=(4, 3), last=True),
            case((1, 2, 3), scale_factor=2.0),
        ]
    ),
    same_bits=over(
        [case((2, 19, 67, 129), scale_factor=2.5, last=last, quick=False) for last in (False, True)]
        + SMALL[:1]
    ),
    autocast=over(SMALL[:1]),
    raw_op_refuses=[
        call
        for op in ("interpolate_nearest_forward", "interpolate_nearest_backward")
        for call in spoiled(
            op,
            (torch.zeros(2, 3, 4, 5), [3, 4], [0.0, 0.0], False, False),
            {0: torch.zeros(2, 3)},
            {0: torch.zeros(1, 1, 1, 1, 1, 1)},
            {0: torch.zeros(2, 3, 4, 5).long()},
            {0: torch.zeros(2, 3, 5, 4).mT},
            {0: torch.zeros(2, 3, 0, 5)},
            {1: [3]},
            {1: [3, 4, 5]},
            {1: [3, 0]},
            {1: [-1, 3]},
            {2: [2.0]},
            {2: [2.0, -1.0]},
            {2: [2.0, float("nan")]},
        )
    ],
    bad_arguments=bad(
        "interpolate",
        (TypeError, "input must be a Tensor, got list", {"input": [1.0]}),
        (ValueError, "align_corners is an option of the linear modes", {"align_corners": False}),
        (ValueError, "antialias is an option of the linear modes", {"antialias": True}),
        (ValueError, "either size or scale_factor must be given, got both", {"scale_factor": 2.0}),
        (ValueError, "either size or scale_factor must be given, got neither", {"size": None}),
        (ValueError, r"size must have one value for each of the input's 2 .* got \(3,\)", {"size": (3,)}),
        (ValueError, "scale_factor must have one value for each", {"size": None, "scale_factor": [2.0]}),
        (TypeError, "expected size to be one of int or several ints, got 2.5", {"size": (3, 2.5)}),
        (ValueError, "recompute_scale_factor needs a scale_factor", {"recompute_scale_factor": True}),
        (RuntimeError, r"output size must be at least 1, got \(0, 5000\)", {"size": (0, 5000)}),
        (
            RuntimeError,
            r"input must be non-empty but for its batch.*\(2, 0, 4, 4\)",
            {"input": torch.zeros(2, 0, 4, 4)},
        ),
        input=torch.zeros(2, 3, 40, 50),
        size=(30, 30),
    ),
)


def valid_arguments() -> dict[str, tuple]:
    x = torch.randn(2, 3, 4, 5)
    return {
        "interpolate_nearest_forward": (x, [6, 7], [0.0, 1.5], False, False),
        "interpolate_nearest_backward": (x, [3, 2], [0.0, 1.5], True, True),
    }


def run_sanitized(ops: Any) -> None:
    """Tensors of any alignment, sizes that are no multiple of a pack, extreme scale factors."""
    sizes = ([1, 1], [6, 10], [7, 9], [2, 40])
    for dtype, size, factor, last, offset in itertools.product(
        (torch.float32, torch.bfloat16), sizes, (0.0, 1e-300, 0.7, 1e300), (False, True), (0, 1)
    ):
        for channels in (3, 8):
            x = torch.rand(offset + channels * 15).to(dtype)[offset:]
            x = x.view(1, 3, 5, channels) if last else x.view(1, channels, 3, 5)
            ops.interpolate_nearest_forward(x, size, [factor, factor], not last, last)
            ops.interpolate_nearest_backward(x, size, [factor, factor], last, last)


CUDA_CODE = {"interpolate": [PACKS]}


def _triton(shape: tuple[int, ...], size: list[int], dtype: torch.dtype, channels_last: bool) -> None:
    from pyops.triton_kernels import interpolate

    factors, exact = [0.0] * len(size), dtype != F32
    x = meta(*shape, dtype=dtype)
    y = interpolate.interpolate_nearest_forward(x, size, factors, exact, channels_last)
    own = list(shape[1:-1] if channels_last else shape[2:])
    interpolate.interpolate_nearest_backward(y, own, factors, exact, channels_last)


TRITON_CASES = {
    "interpolate-double-float32": lambda: _triton((8, 64, 56, 56), [112, 112], F32, False),
    "interpolate-channels_last-bfloat16": lambda: _triton((8, 56, 56, 64), [112, 112], BF16, True),
    "interpolate-volume-float64": lambda: _triton((2, 3, 5, 7, 9), [8, 8, 8], F64, False),
}


MUTANTS = {
    "nearest_exact_is_not_centred": Mutant(
        "math/interpolate.h", "(exact ? 0.5f : 0.0f)) * scale", "0.0f) * scale", ("interpolate",)
    ),
    "interpolate_gradient_sums_one_row": Mutant(
        "cpu/interpolate.cpp", "planes[1] - planes[0], range[1] - range[0],", "1, 1,", ("interpolate",)
    ),
    "interpolate_repeats_the_row_before": Mutant(
        "cpu/interpolate.cpp", "if (in == copied) {", "if (copied != nullptr) {", ("interpolate",)
    ),
}
