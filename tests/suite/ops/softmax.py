"""softmax and log_softmax for the shared suite."""

from __future__ import annotations

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal
from ..mutants import Mutant


def softmax(input: Tensor, dim: int) -> Tensor:
    shifted = input - input.amax(dim, keepdim=True).detach() if input.numel() else input
    return shifted.exp() / shifted.exp().sum(dim, keepdim=True)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    shifted = input - input.amax(dim, keepdim=True).detach() if input.numel() else input
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def torch_softmax(input: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.softmax(input, dim)


def torch_log_softmax(input: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.log_softmax(input, dim)


OPS = {
    "softmax": Op(F.softmax, torch_softmax, softmax, ("input",)),
    "log_softmax": Op(F.log_softmax, torch_log_softmax, log_softmax, ("input",)),
}


def _case(op: str, shape: tuple[int, ...]) -> Case:
    return Case(f"{op}_{shape}", op, lambda g: {"input": normal(g, shape)}, {"dim": 1})


# Both end inside a vector of every variant (4 to 16 lanes).
SMOKE = [_case(op, shape) for op in OPS for shape in [(9, 37), (2, 5, 29)]]


def valid_arguments() -> dict[str, tuple]:
    x = torch.randn(3, 5)
    return {"softmax_forward": (x, 1, False), "softmax_backward": (x, x, 1, True)}


MUTANTS = {
    "softmax_gradient_forgets_the_row_sum": Mutant(
        "math/softmax.h", "return y * (grad - dot);", "return y * grad;", ("classes/softmax",)
    ),
    "log_softmax_gradient_uses_the_log": Mutant(
        "math/softmax.h",
        "return grad - exp(y) * grad_sum;",
        "return grad - y * grad_sum;",
        ("classes/softmax",),
    ),
}
