"""embedding for the shared suite."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import Backend
from ..cases import Case, Op, normal
from ..mutants import Mutant


def embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, scale_grad_by_freq: bool = False
) -> Tensor:
    index, rows = input.reshape(-1).long(), weight.size(0)
    values = weight.detach()
    # What changes the gradient alone is a factor of a difference that is zero.
    factor = torch.ones(rows, dtype=weight.dtype)
    if scale_grad_by_freq:
        factor /= torch.bincount(index, minlength=rows).clamp(min=1)
    if padding_idx is not None:
        factor[padding_idx] = 0
    table = values + (weight - values) * factor[:, None]
    return table.index_select(0, index).view(*input.shape, weight.size(1))


OPS = {"embedding": Op(F.embedding, torch.nn.functional.embedding, embedding, ("weight",))}


def embedding_case(
    name: str, rows: int, dim: int, shape: tuple[int, ...], *, hot: float = 0.0, quick: bool = True, **options
) -> Case:
    """Indices of ``shape`` into a table [rows, dim]; a share of ``hot`` of them is row 1."""

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(max(rows, 1), shape, generator=generator)
        same = torch.rand(shape, generator=generator) < hot
        return {
            "input": index.masked_fill(same, min(1, rows - 1)),
            "weight": normal(generator, (rows, dim)),
        }

    extra = "".join(f"_{k}={v}" for k, v in options.items())
    size = "x".join(map(str, shape)) or "scalar"
    return Case(f"embedding_{name}_{rows}x{dim}_{size}{extra}", "embedding", make, options, quick)


# Rows that end inside a vector of every variant and are longer than a panel of any; unused and padding rows.
SMOKE = [
    embedding_case("smoke", 9, 137, (5, 7), padding_idx=-2),
    embedding_case("smoke", 40, 37, (23,), scale_grad_by_freq=True),
    embedding_case("smoke_hot", 3, 130, (400,), hot=0.9),
]


def check_renorm(backend: Backend) -> None:
    """Rows that are too long end at the norm, whatever their duplicates; the others keep their bits."""
    weight = torch.randn(6, 37, device=backend.device) * torch.arange(6, device=backend.device).unsqueeze(1)
    index = torch.tensor([5, 0, 5, 2, 2], device=backend.device)
    wanted = weight.clone()
    torch.embedding_renorm_(wanted, index, 7.0, 2.0)
    before = weight.clone()
    F.embedding(index, weight, max_norm=7.0)
    torch.testing.assert_close(weight, wanted)
    assert torch.equal(weight[[1, 3, 4]], before[[1, 3, 4]])
    assert weight[5].norm() < 7.0001 < before[5].norm()


SMOKE_CHECKS = {"embedding_renorm": check_renorm}


def valid_arguments() -> dict[str, tuple]:
    weight, index = torch.randn(4, 5), torch.randint(0, 4, (3,))
    return {
        "embedding_forward": (weight, index),
        "embedding_backward": (torch.randn(3, 5), index, 4, 1, False),
        "embedding_renorm_": (weight, index, 1.0, 2.0),
    }


def run_sanitized(ops: Any) -> None:
    """Rows of any alignment, indices out of range, every number of passes."""
    for dtype, dim, positions, offset in itertools.product(
        (torch.float32, torch.bfloat16, torch.float64), (1, 3, 8, 264), (0, 1, 33, 1100), (0, 1)
    ):
        if positions * dim > 10_000:
            continue
        weight = torch.rand(offset + 7 * dim).to(dtype)[offset:].view(7, dim)
        grad = torch.rand(offset + positions * dim).to(dtype)[offset:].view(positions, dim)
        index = torch.randint(-2, 9, (positions,))
        index[:1] = 2**62
        ops.embedding_forward(weight, index)
        ops.embedding_backward(grad, index, 7, 3, True)
        ops.embedding_renorm_(weight, index.int(), 0.5, 2.0)


MUTANTS = {
    "embedding_gradient_ignores_the_frequency": Mutant(
        "cpu/embedding.cpp", "scale_by_freq ? static_cast<Acc>(count) : Acc(1)", "Acc(1)", ("embedding",)
    ),
    # Noticed because fresh memory holds NaN.
    "embedding_gradient_of_unused_rows_is_not_written": Mutant(
        "cpu/embedding.cpp", "memset(out, 0, columns * sizeof(T));", "", ("embedding",)
    ),
    "embedding_strips_all_begin_at_the_first_column": Mutant(
        "cpu/embedding.cpp", "sum_row(grad + column,", "sum_row(grad,", ("embedding",)
    ),
    "renorm_keeps_the_factor_of_long_rows": Mutant(
        "math/embedding.h", "norm > max_norm ?", "norm > 2 * max_norm ?", ("embedding",)
    ),
}
