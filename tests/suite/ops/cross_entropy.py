"""cross_entropy for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import Backend
from ..cases import Op
from ..class_losses import SMOKE_SHAPES, as_rows, loss_case, reduce, row_shape
from ..mutants import Mutant


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    sample_weight: Tensor | None = None,
    return_lse: bool = False,
    inplace_backward: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    x = as_rows(input)
    rows, classes = x.shape
    lse = x.logsumexp(1)
    weight = x.new_ones(classes) if weight is None else weight
    e = label_smoothing
    if target.is_floating_point():
        counted = torch.ones(rows, dtype=torch.bool)
        nll = -x.log_softmax(1)
        smoothed = as_rows(target) * (1 - e) + e / max(classes, 1)
        row_loss = (weight * smoothed * nll).sum(1)
        divisor = torch.tensor(float(rows), dtype=x.dtype)
    else:
        y = target.reshape(-1)
        counted = y != ignore_index
        y = torch.where(counted, y, 0)
        # Rows that do not count must not: their logits may be anything.
        nll = -torch.where(counted[:, None], x, 0.0).log_softmax(1)
        if classes == 0:
            row_loss, divisor = x.sum(1), x.new_zeros(())
        else:
            row_loss = (1 - e) * weight[y] * nll.gather(1, y[:, None])[:, 0]
            divisor = torch.where(counted, weight[y], 0.0).sum()
        if e > 0:
            row_loss = row_loss + e / classes * (weight * nll).sum(1)
    if z_loss:
        row_loss = row_loss + z_loss * torch.where(counted, lse, 0.0) ** 2
    if sample_weight is not None:
        row_loss = row_loss * sample_weight.expand(row_shape(input)).reshape(-1)
    loss = reduce(torch.where(counted, row_loss, 0.0), divisor, reduction, row_shape(input))
    return (loss, lse.reshape(row_shape(input))) if return_lse else loss


def torch_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    sample_weight: Tensor | None = None,
    return_lse: bool = False,
    inplace_backward: bool = False,
) -> Any:
    """What a user of torch writes for the same loss; extra terms are added in float32."""
    arguments = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    cross_entropy = torch.nn.functional.cross_entropy
    lse = None
    if z_loss or return_lse:
        wide = input if input.dtype is torch.float64 else input.float()
        lse = wide.logsumexp(min(input.dim() - 1, 1))
    if not z_loss and sample_weight is None:
        loss = cross_entropy(input, target, reduction=reduction, **arguments)
        return (loss, lse) if return_lse else loss
    rows = cross_entropy(input, target, reduction="none", **arguments)
    rows = rows if rows.dtype is torch.float64 else rows.float()
    is_index = not target.is_floating_point()
    if z_loss:
        rows = rows + z_loss * (lse.masked_fill(target == ignore_index, 0.0) if is_index else lse) ** 2
    if sample_weight is not None:
        rows = rows * sample_weight
    if is_index:
        counted = target != ignore_index
        y = target.masked_fill(~counted, 0)
        divisor = (weight[y] * counted).sum() if weight is not None else counted.sum()
    else:
        divisor = rows.numel()
    loss = reduce(rows, divisor, reduction, rows.shape).to(input.dtype)
    return (loss, lse) if return_lse else loss


OPS = {"cross_entropy": Op(F.cross_entropy, torch_cross_entropy, cross_entropy, ("input",))}


def _below_zero(logits: Tensor) -> Tensor:
    return logits - 300.0


SMOKE = [
    loss_case("cross_entropy", f"cross_entropy_{name}_{shape}", shape, **options)
    for shape in SMOKE_SHAPES
    for name, options in [
        ("mean", {"weight": True, "ignored": 1}),
        ("none", {"reduction": "none", "ignored": 255}),
        ("smoothing", {"weight": True, "ignored": 1, "label_smoothing": 0.2}),
        ("soft", {"probability_target": True, "label_smoothing": 0.2, "weight": True}),
        ("extras", {"z_loss": 0.1, "sample_weight": True, "return_lse": True}),
        ("below_zero", {"change": _below_zero}),
    ]
]


def _check_ignored_row_of_nan(backend: Backend) -> None:
    for shape in SMOKE_SHAPES:
        logits = torch.full(shape, torch.nan, requires_grad=True)
        target = torch.full((shape[0], *shape[2:]), -100)
        loss = F.cross_entropy(logits, target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0
        assert (gradient == 0).all()


SMOKE_CHECKS = {"ignored_row_of_nan": _check_ignored_row_of_nan}


def valid_arguments() -> dict[str, tuple]:
    logits, target = torch.randn(3, 5), torch.randint(0, 5, (3,))
    one, stats = torch.ones(()), torch.zeros(2, 3)
    options = (1, -100, 0.1, 0.1)
    saved = (one, None, logits, target, None, None, stats, one, *options)
    return {
        "cross_entropy_forward": (logits, target, None, None, *options),
        "cross_entropy_backward": saved,
        "cross_entropy_backward_": saved,
        "cross_entropy_forward_with_grad": (logits, target, None, None, *options),
        "cross_entropy_regrade_": (torch.zeros(3, 5), one, *saved[2:]),
    }


_CE = ("classes/cross_entropy",)
MUTANTS = {
    "target_gradient_has_the_wrong_sign": Mutant(
        "math/cross_entropy.h",
        "return probability * row.on_probability - q * row.on_target;",
        "return probability * row.on_probability + q * row.on_target;",
        _CE,
    ),
    "smoothing_is_divided_by_one_class_less": Mutant(
        "math/cross_entropy.h",
        "label_smoothing / num_classes",
        "label_smoothing / (num_classes - T(1))",
        _CE,
    ),
    "mean_divides_by_rows_instead_of_weights": Mutant(
        "cpu/classes/cross_entropy_rows.h", "sum.weight += p.class_weight(y);", "sum.weight += 1;", _CE
    ),
    "ignored_rows_are_not_skipped_forward": Mutant(
        "cpu/classes/cross_entropy_rows.h", "y != p.ignore_index) {", "y != -12345) {", _CE
    ),
    "ignored_rows_get_probabilities_as_gradient": Mutant(
        "cpu/classes/cross_entropy_rows.h",
        "plan.zero = grad_lse == Acc(0);",
        "plan.zero = false;",
        _CE,
    ),
    "ignored_rows_are_multiplied_by_zero_in_panels": Mutant(
        "cpu/classes/cross_entropy_rows.h",
        "select_greater(keep.vec(i), V(Acc(0)), grad, V(Acc(0)))",
        "grad * keep.vec(i)",
        _CE,
    ),
    "gradient_of_z_loss_lacks_its_factor_2": Mutant(
        "math/cross_entropy.h", "scale * T(2) * p.z_loss", "scale * p.z_loss", _CE
    ),
    "sample_weight_is_left_out_of_the_gradient": Mutant(
        "math/cross_entropy.h",
        "const T scale = grad * sample_weight;",
        "const T scale = grad;",
        _CE,
    ),
    "running_maximum_starts_at_zero": Mutant(
        "cpu/classes/max_sum.h",
        "MaxSum<acc_t<T>> r{-math::infinity<acc_t<T>>(), 0};",
        "MaxSum<acc_t<T>> r{0, 0};",
        _CE,
    ),
    "last_lane_of_a_partial_vector_is_lost": Mutant(
        "cpu/simd/vec.h", "store_partial(p, x, lanes);", "store_partial(p, x, lanes - 1);", _CE
    ),
    "missing_lanes_of_a_sum_of_exp_hold_zero": Mutant(
        "cpu/classes/max_sum.h",
        "reduce_row(x, n, acc_t<T>(0), -math::infinity<acc_t<T>>(), join, add<V>)",
        "reduce_row(x, n, acc_t<T>(0), acc_t<T>(0), join, add<V>)",
        _CE,
    ),
}
