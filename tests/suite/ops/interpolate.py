"""interpolate (nearest) for the shared suite."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal
from ..layouts import channels_last
from ..mutants import Mutant


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


def interpolate_case(
    shape: tuple[int, ...], *, last: bool = False, quick: bool = True, **options: Any
) -> Case:
    """``last``: with the channels last."""

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        x = normal(generator, shape)
        return {"input": channels_last(x) if last else x}

    parts = [f"{k}={v}".replace(" ", "") for k, v in options.items()]
    name = "_".join(["x".join(map(str, shape)), *parts, *(["channels_last"] if last else [])])
    return Case(f"interpolate_{name}", "interpolate", make, options, quick)


# Rows that end inside a vector of every variant; each loop over columns.
SMOKE = [
    interpolate_case((2, 3, 5, 37), scale_factor=2.0),
    interpolate_case((2, 3, 5, 11), scale_factor=3.0),
    interpolate_case((2, 3, 7, 19), size=(10, 31), mode="nearest-exact"),
    interpolate_case((2, 37, 5, 6), scale_factor=2.0, last=True),
    interpolate_case((2, 3, 4, 5, 6), size=(7, 3, 13)),
]


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
