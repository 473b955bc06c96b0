"""The elementwise losses for the shared suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal, uniform
from ..mutants import Mutant


def _reduce(loss: Tensor, reduction: str, divisor: Tensor | int) -> Tensor:
    if reduction == "none":
        return loss
    return loss.sum() / divisor if reduction == "mean" else loss.sum()


def mse_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    loss = (input - target) ** 2
    if weight is None:
        return _reduce(loss, reduction, loss.numel())
    return _reduce(weight * loss, reduction, weight.sum())


def l1_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    loss = (input - target).abs()
    if weight is None:
        return _reduce(loss, reduction, loss.numel())
    return _reduce(weight * loss, reduction, weight.sum())


def huber_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    delta: float = 1.0,
) -> Tensor:
    d = (input - target).abs()
    loss = torch.where(d <= delta, 0.5 * d**2, delta * (d - 0.5 * delta))
    loss = loss if weight is None else weight * loss
    return _reduce(loss, reduction, loss.numel())


def smooth_l1_loss(input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    d = (input - target).abs()
    loss = d if beta == 0 else torch.where(d < beta, 0.5 * d**2 / beta, d - 0.5 * beta)
    return _reduce(loss, reduction, loss.numel())


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | float = 1.0,
) -> Tensor:
    # log sigmoid(x) = min(x, 0) - log(1 + exp(-|x|)), and 1 - sigmoid(x) = sigmoid(-x)
    log1p = torch.log1p(torch.exp(-input.abs()))
    loss = target * pos_weight * (log1p - input.clamp(max=0)) + (1 - target) * (log1p + input.clamp(min=0))
    loss = loss if weight is None else weight * loss
    return _reduce(loss, reduction, loss.numel())


DIFFERENCES = ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss")
BCE = "binary_cross_entropy_with_logits"
NAMES = (*DIFFERENCES, BCE)

OPS = {
    name: Op(
        getattr(F, name),
        getattr(torch.nn.functional, name),
        globals()[name],
        ("input",) if name == BCE else ("input", "target"),
    )
    for name in NAMES
}


def loss_case(
    op: str,
    id: str,
    shape: tuple[int, ...],
    *,
    weight: bool | tuple[int, ...] = False,
    pos_weight: tuple[int, ...] | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
    quick: bool = True,
    **options: Any,
) -> Case:
    """A case of any of the losses. ``weight`` may be a shape; ``change`` edits the input."""

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        input = normal(generator, shape)
        tensors = {"input": input if change is None else change(input)}
        if op == BCE:
            # Smoothed labels. With any others sigmoid(x) - y at times cancels to the rounding of sigmoid(x).
            labels = torch.randint(0, 2, shape, generator=generator)
            tensors["target"] = labels * 0.75 + uniform(generator, shape) / 8
        else:
            tensors["target"] = normal(generator, shape, 0.5)
        if weight is not False:
            tensors["weight"] = uniform(generator, shape if weight is True else weight)
        if pos_weight is not None:
            tensors["pos_weight"] = uniform(generator, pos_weight)
        return tensors

    return Case(f"{op}_{id}", op, make, options, quick)


# The second ends inside a vector of every variant (4 to 16 lanes), and after more than one chunk (512).
SMOKE = [
    made
    for op in NAMES
    for made in (
        loss_case(op, "smoke_mean", (5, 211)),
        loss_case(op, "smoke_none", (3, 37), reduction="none"),
    )
] + [
    loss_case("mse_loss", "smoke_weight", (5, 211), weight=True),
    loss_case("l1_loss", "smoke_weight", (5, 211), weight=True),
    loss_case("huber_loss", "smoke_weight", (3, 37), weight=True, delta=0.5),
    loss_case("smooth_l1_loss", "smoke_beta", (3, 37), beta=0.5),
    loss_case(BCE, "smoke_rows", (20, 37), weight=(37,), pos_weight=(20, 1)),
    loss_case(BCE, "smoke_few", (2, 3, 211), weight=(3, 1), pos_weight=(2, 1, 1)),
]


def valid_arguments() -> dict[str, tuple]:
    x, one = torch.rand(3, 5), torch.ones(())
    tensors = (x, torch.rand(3, 5), torch.rand(3, 5), 1, torch.rand(5), 1)
    options = (4, 0.0, 1)
    return {
        "elementwise_loss_forward": (*tensors, *options),
        "elementwise_loss_backward": (one, *tensors[:4], None, 1, one, 2, 1.0, 1, True),
        "elementwise_loss_forward_with_grad": (*tensors, *options, False),
        "elementwise_loss_regrade_": (torch.rand(3, 5), one),
    }


MUTANTS = {
    "huber_gradient_loses_its_sign": Mutant(  # as in attorch
        "math/loss.h",
        "return {c * (d - c * T(0.5)), c};",
        "return {c * (d - c * T(0.5)), abs(c)};",
        ("loss",),
    ),
    "pos_weight_is_missing_from_the_gradient": Mutant(
        "math/loss.h",
        "(positive + one - y) * sigmoid - positive};",
        "sigmoid - positive};",
        ("loss",),
    ),
    "the_last_vector_counts_its_padding": Mutant(
        "cpu/loss_chunks.h",
        "std::fill_n(buffers[2] + length, padded - length, Acc(0));",
        "std::fill_n(buffers[2] + length, padded - length, Acc(1));",
        ("loss",),
    ),
    "repeated_weights_restart_in_every_chunk": Mutant(
        "cpu/loss_chunks.h",
        "int64_t left = factor.inner - begin % factor.inner;",
        "int64_t left = factor.inner;",
        ("loss",),
    ),
}
