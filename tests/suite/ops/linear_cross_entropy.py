"""linear_cross_entropy for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal, uniform
from ..mutants import Mutant
from .cross_entropy import cross_entropy, torch_cross_entropy


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    chunk_size: int | None = None,
    **options,
) -> Tensor:
    return cross_entropy(linear_logits(input, linear_weight, linear_bias), target, **options)


def linear_logits(input: Tensor, linear_weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits (C) or (N, C, *d) of hidden states (in) or (N, in) and a weight (C, *d, in)."""
    flat = torch.nn.functional.linear(input, linear_weight.flatten(0, -2))
    logits = flat.reshape(*input.shape[:-1], *linear_weight.shape[:-1])
    return logits if bias is None else logits + bias


def torch_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    chunk_size: int | None = None,
    **options: Any,
) -> Tensor:
    flat_bias = None if linear_bias is None else linear_bias.flatten()
    flat = torch.nn.functional.linear(input, linear_weight.flatten(0, -2), flat_bias)
    logits = flat.reshape(*input.shape[:-1], *linear_weight.shape[:-1])
    return torch_cross_entropy(logits, target, **options)


OPS = {
    "linear_cross_entropy": Op(
        F.linear_cross_entropy,
        torch_linear_cross_entropy,
        linear_cross_entropy,
        ("input", "linear_weight", "linear_bias"),
    ),
}


def _case(reduction: str, chunk_size: int | None, *, bias: bool = True) -> Case:
    def make(generator: torch.Generator) -> dict[str, torch.Tensor]:
        tensors = {
            "input": normal(generator, (21, 17), 1.0),
            "linear_weight": normal(generator, (37, 17), 1.0),
            "target": torch.randint(0, 37, (21,), generator=generator),
        }
        return {**tensors, "linear_bias": uniform(generator, (37,))} if bias else tensors

    options = {"chunk_size": chunk_size, "reduction": reduction}
    return Case(f"linear_{reduction}_{chunk_size}_{bias}", "linear_cross_entropy", make, options)


SMOKE = [_case("mean", 8), _case("none", 8), _case("mean", None), _case("mean", None, bias=False)]


def valid_arguments() -> dict[str, tuple]:
    hidden, matrix, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    tensors = (hidden, matrix, bias, torch.randint(0, 5, (3,)), None, None)
    return {
        "linear_cross_entropy_with_grad": (*tensors, 1, -100, 0.1, 0.1, True, True, True),
    }


_SOURCE = ("classes/linear_cross_entropy",)
MUTANTS = {
    "small_linear_cross_entropy_adds_to_uninitialised_logits": Mutant(
        "cpu/classes/linear_cross_entropy.cpp", "T(b ? 1 : 0)", "T(1)", _SOURCE
    ),
    "small_linear_cross_entropy_sums_one_row_less_into_the_bias": Mutant(
        "cpu/classes/linear_cross_entropy.cpp",
        "column_sums(grad, rows,",
        "column_sums(grad, rows - 1,",
        _SOURCE,
    ),
}
