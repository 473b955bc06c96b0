"""linear, alone and with an activation and dropout, for the shared suite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import pyops
from pyops import functional as F
from pyops.kinds import RELU, Activation

from ..backends import Backend, raw
from ..cases import Case, Op, normal
from ..mutants import Mutant

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp_min(0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "tanh": torch.tanh,
    "selu": torch.selu,
    "softplus": lambda x: x.exp().log1p(),
    "elu": torch.nn.functional.elu,
    "gelu": lambda x: 0.5 * x * torch.special.erfc(-x / 2**0.5),
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": lambda x: x / (1 + (-x).exp()),
    "hardswish": torch.nn.functional.hardswish,
}
TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(torch.nn.functional, name) for name in ACTIVATIONS if name != "gelu_tanh"},
    "gelu_tanh": ACTIVATIONS["gelu_tanh"],
}


def formula(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    z = (input.unsqueeze(-2) * weight).sum(-1)
    z = z if bias is None else z + bias
    return z if activation is None else ACTIVATIONS[activation](z)


def torchs(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    z = torch.nn.functional.linear(input, weight, bias)
    return z if activation is None else TORCHS[activation](z)


OPS = {"linear": Op(F.linear, torchs, formula, ("input", "weight", "bias"))}


def case(
    name: str,
    leading: tuple[int, ...],
    k: int,
    n: int,
    *,
    bias: bool = True,
    activation: str | None = None,
    quick: bool = True,
) -> Case:
    """One product of ``leading`` x k and n x k, of about unit variance."""

    def make(g: torch.Generator) -> dict[str, Tensor]:
        tensors = {"input": normal(g, (*leading, k)), "weight": normal(g, (n, k), 1 / max(k, 1) ** 0.5)}
        return {**tensors, "bias": normal(g, (n,))} if bias else tensors

    options = {} if activation is None else {"activation": activation}
    shape = "x".join(map(str, (*leading, k)))
    id = f"linear_{name}_{shape}_to_{n}{'' if bias else '_no_bias'}{f'_{activation}' if activation else ''}"
    return Case(id, "linear", make, options, quick)


# More than one block of k, thin products, ends inside a vector of every variant (4 to 16 lanes).
SMOKE = [
    case("smoke", (19,), 300, 37, activation="relu"),
    case("smoke", (19,), 31, 37, activation="gelu"),
    case("smoke", (1090,), 5, 31),
    case("smoke", (3,), 37, 21, activation="tanh"),
    case("smoke", (2, 9), 3, 21, bias=False),
]


def _check_dropout(backend: Backend) -> None:
    """One element in the middle of a mask is the pyops.dropout of the contiguous output."""
    x, w = torch.rand(9, 5), torch.rand(21, 5)
    seed = torch.tensor([7, 8])
    found = raw(backend, "linear_forward")(x, w, None, seed, 0.5, 1, 0.0, 0.0, False)[0]
    torch.testing.assert_close(found, pyops.reference.linear.linear(x, w, None, seed, 0.5, Activation(RELU)))


SMOKE_CHECKS = {"linear_dropout": _check_dropout}


def valid_arguments() -> dict[str, tuple]:
    x, w, y, seed = torch.randn(3, 5), torch.randn(2, 5), torch.randn(3, 2), torch.tensor([1, 2])
    return {
        "linear_forward": (x, w, torch.randn(2), seed, 0.5, 8, 0.0, 0.0, True),
        "linear_backward": (y, x, w, y, seed, 0.5, 1, 0.0, 0.0, True, True, True, True),
    }


MUTANTS = {
    "column_sums_drop_the_last_block": Mutant(
        "cpu/epilogue/matrix.h",
        "for (int64_t b = 1; b < blocks; ++b) sum",
        "for (int64_t b = 1; b < blocks - 1; ++b) sum",
        ("linear",),
    ),
    "epilogue_runs_after_the_first_block_of_k": Mutant(
        "cpu/gemm/gemm.h",
        "if (target.last) finished(row, rows);",
        "if (target.first) finished(row, rows);",
        ("linear",),
    ),
    "thin_products_forget_the_last_columns": Mutant(
        "cpu/gemm/skinny.h", "for (; j < end; ++j) {", "for (; j + 1 < end; ++j) {", ("gemm/gemm",)
    ),
}
