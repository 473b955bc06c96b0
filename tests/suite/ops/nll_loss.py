"""nll_loss for the shared suite."""

from __future__ import annotations

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Op
from ..class_losses import SMOKE_SHAPES, as_rows, loss_case, reduce, row_shape
from ..mutants import Mutant


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    rows, y = as_rows(input), target.reshape(-1)
    counted = y != ignore_index
    weight = rows.new_ones(rows.size(1)) if weight is None else weight
    y = torch.where(counted, y, 0)
    if rows.size(1) == 0:  # every row must be ignored
        return reduce(rows.sum(1), rows.new_zeros(()), reduction, row_shape(input))
    row_loss = torch.where(counted, -weight[y] * rows.gather(1, y[:, None])[:, 0], 0.0)
    divisor = torch.where(counted, weight[y], 0.0).sum()
    return reduce(row_loss, divisor, reduction, row_shape(input))


OPS = {"nll_loss": Op(F.nll_loss, torch.nn.functional.nll_loss, nll_loss, ("input",))}

SMOKE = [
    loss_case("nll_loss", f"nll_loss_{name}_{shape}", shape, **options)
    for shape in SMOKE_SHAPES
    for name, options in [
        ("mean", {"weight": True, "ignored": 1}),
        ("none", {"reduction": "none", "ignored": 1}),
    ]
]


def valid_arguments() -> dict[str, tuple]:
    target, one = torch.randint(0, 5, (3,)), torch.ones(())
    return {
        "nll_loss_forward": (torch.randn(3, 5), target, None, 1, -100),
        "nll_loss_backward": (one, target, None, one, 5, 1, -100, torch.float32),
    }


MUTANTS = {
    "nll_gradient_ignores_the_weight": Mutant(
        "math/nll_loss.h", "return -weight * grad;", "return -grad + T(0) * weight;", ("classes/nll_loss",)
    ),
    "nll_gradient_of_a_mean_is_not_divided": Mutant(
        "cpu/classes/nll_loss.cpp",
        "if (reduction == Reduction::kMean) grad /= total;",
        "(void)total;",
        ("classes/nll_loss",),
    ),
    # Noticed because fresh memory holds NaN.
    "gradient_is_not_zeroed_first": Mutant(
        "cpu/classes/nll_loss.cpp",
        "memset(image, 0, sizeof(T) * s.classes * s.inner);",
        "",
        ("classes/nll_loss",),
    ),
}
