"""embedding for the shared suite."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import Backend
from ..cases import Case, Op, normal
from ..contract import BOTH, FLOAT, Contract, bad, over
from ..cuda_code import PACKS
from ..mutants import Mutant
from ..triton_cases import BF16, F32, F64, meta


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


def case(
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
    case("smoke", 9, 137, (5, 7), padding_idx=-2),
    case("smoke", 40, 37, (23,), scale_grad_by_freq=True),
    case("smoke_hot", 3, 130, (400,), hot=0.9),
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


# Dimensions end inside vectors and packs; 33 and 70 positions need a second pass of the GPU's sums.
_SIZES = [
    case("size", 5, 1, (7,)),
    case("size", 7, 5, (3, 4)),
    case("size", 11, 16, (33,)),
    case("size", 3, 37, (70,)),
    case("size", 6, 264, (9,)),
    case("size", 4, 3, ()),
    case("size", 1, 4, (5,)),
]
_OPTIONS = [
    case("options", 6, 8, (2, 9), padding_idx=padding, scale_grad_by_freq=scaled)
    for padding in (None, 0, 5, -1, -6)
    for scaled in (False, True)
]
# 1100 positions need a third pass; a row that most of them name crosses every border between chunks.
_HOT = [
    case("hot", 5, 3, (1100,), hot=0.95),
    case("hot", 5, 130, (70,), hot=1.0, scale_grad_by_freq=True),
    case("hot", 5, 12, (600,), hot=0.97, scale_grad_by_freq=True),
    case("hot", 5, 130, (70,), hot=0.9, padding_idx=1),
]
_LARGE = [
    case("large", 28, 256, (35, 32), quick=False),
    case("large", 50_000, 33, (1024,), quick=False),
    case("large", 300, 70, (60_000,), hot=0.3, quick=False, scale_grad_by_freq=True),
]
_EMPTY = [case("empty", 5, 3, (0,)), case("empty", 5, 3, (2, 0)), case("empty", 5, 0, (4,)),
          case("empty", 0, 3, (0,))]  # fmt: skip
SMALL = [
    case("compact", 6, 8, (2, 9)),
    case("compact", 5, 3, (40,), padding_idx=-1, scale_grad_by_freq=True),
]
_WEIGHT, _INDEX = torch.zeros(50, 40), torch.zeros(30, dtype=torch.int64)
_GRAD = torch.zeros(30, 40)


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(_SIZES)
    + over(_OPTIONS, [torch.float32, torch.float16])
    + over(_HOT, BOTH)
    + over(_LARGE, BOTH)
    + over(_EMPTY, FLOAT),
    strided_input=over([case("layout", 9, 12, (4, 5))], BOTH),
    strided_upstream=over([case("upstream", 9, 12, (4, 5))]),
    gradcheck=over([case("gradcheck", 4, 3, (2, 4))]),
    same_bits=over(
        [
            case("threads", 300, 70, (60_000,), hot=0.3, quick=False),
            case("threads", 20_000, 65, (5000,), quick=False),
            case("runs", 5, 3, (200,), hot=0.8),
        ]
    ),
    autocast=over(SMALL[:1]),
    raw_op_refuses=[
        ("embedding_forward", (_WEIGHT[0], _INDEX)),
        ("embedding_forward", (_WEIGHT.long(), _INDEX)),
        ("embedding_forward", (_WEIGHT, _INDEX.float())),
        ("embedding_forward", (_WEIGHT, _INDEX[::2])),
        ("embedding_backward", (_GRAD[:29], _INDEX, 50, -1, False)),
        ("embedding_backward", (_GRAD[0], _INDEX, 50, -1, False)),
        ("embedding_backward", (torch.zeros(()), _INDEX, 50, -1, False)),
        ("embedding_backward", (torch.zeros(40, 30).t(), _INDEX, 50, -1, False)),
        ("embedding_backward", (_GRAD.long(), _INDEX, 50, -1, False)),
        ("embedding_backward", (_GRAD, _INDEX.short(), 50, -1, False)),
        ("embedding_backward", (_GRAD, _INDEX, -1, -1, False)),
        ("embedding_renorm_", (_WEIGHT[0], _INDEX, 1.0, 2.0)),
        ("embedding_renorm_", (_WEIGHT[:1].expand(50, 40), _INDEX, 1.0, 2.0)),
        ("embedding_renorm_", (_WEIGHT, _INDEX.bool(), 1.0, 2.0)),
    ],
    bad_arguments=bad(
        "embedding",
        (TypeError, "input must be a Tensor, got list", {"input": [1]}),
        (TypeError, "weight must be a Tensor, got list", {"weight": [1.0]}),
        (TypeError, "input must hold int64 or int32 indices, got torch.float32", {"input": _INDEX.float()}),
        (TypeError, "input must hold int64 or int32 indices, got torch.uint8", {"input": _INDEX.byte()}),
        (ValueError, r"weight must have shape \(V, D\), got \(2000,\)", {"weight": _WEIGHT.view(-1)}),
        (ValueError, r"padding_idx must be in \[-50, 49\], got 50", {"padding_idx": 50}),
        (ValueError, r"padding_idx must be in \[-50, 49\], got -51", {"padding_idx": -51}),
        (RuntimeError, "weight must be on cpu.*got meta", {"weight": _WEIGHT.to("meta")}),
        input=_INDEX,
        weight=_WEIGHT,
    ),
)


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


CUDA_CODE = {"embedding": [PACKS]}


def _triton(
    rows: int, dim: int, positions: int, dtype: torch.dtype, scaled: bool = False, norm_type: float = 2.0
) -> None:
    from pyops.triton_kernels import embedding

    indices = meta(positions, dtype=torch.int64)
    weight = meta(rows, dim, dtype=dtype)
    output = embedding.embedding_forward(weight, indices)
    embedding.embedding_backward(output, indices, rows, -1, scaled)
    embedding.embedding_renorm_(weight, indices, 1.0, norm_type)


TRITON_CASES = {
    "embedding-vocabulary-bfloat16": lambda: _triton(50257, 768, 8192, BF16),
    "embedding-characters-float32": lambda: _triton(28, 256, 1120, F32, True, math.inf),
    "embedding-odd-float64": lambda: _triton(100, 37, 50, F64, False, 1.5),
}


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
