"""linear_cross_entropy for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import CPP, SLOW, THOROUGH
from ..cases import REDUCTIONS, Case, Op, name_of, normal, pairwise, uniform
from ..class_losses import class_indices, class_weights, probabilities
from ..contract import BOTH, FLOAT, Contract, bad, over
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


def case(
    id: str,
    rows: int | None = 13,
    classes: tuple[int, ...] = (11,),
    features: int = 6,
    *,
    bias: bool = False,
    weight: bool = False,
    sample_weight: bool = False,
    probability_target: bool = False,
    ignored: int | None = None,
    quick: bool = True,
    **options,
) -> Case:
    """``rows`` None is the unbatched form; ``classes`` (C, *d) are the logits of a row."""
    batch = () if rows is None else (rows,)
    row_shape = (*batch, *classes[1:])

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        tensors = {
            "input": normal(generator, (*batch, features), 1.0),
            "linear_weight": normal(generator, (*classes, features), 1.0),
        }
        if probability_target:
            tensors["target"] = probabilities(generator, (*batch, *classes))
        else:
            tensors["target"] = class_indices(generator, row_shape, classes[0], ignored)
        if bias:
            tensors["linear_bias"] = normal(generator, classes, 1.0)
        if weight:
            tensors["weight"] = class_weights(generator, classes[0])
        if sample_weight:
            tensors["sample_weight"] = uniform(generator, row_shape)
        return tensors

    if ignored is not None:
        options["ignore_index"] = ignored
    return Case(id, "linear_cross_entropy", make, options, quick)


# 13 rows in chunks of one, of 5 (the last is shorter), of 13 (exactly one) and of more than there are.
_AXES = {
    "classes": [(11,), (5, 3), (4, 2, 3)],
    "bias": [False, True],
    "weight": [False, True],
    "reduction": REDUCTIONS,
    "label_smoothing": [0.0, 0.1],
    "sample_weight": [False, True],
    "z_loss": [0.0, 0.1],
    "chunk_size": [1, 5, 13, 64, None],
}
INDEX = [case(name_of(s), **s) for s in pairwise(**_AXES, ignored=[None, 1, 255])]
SOFT = [case(name_of(s), **s) for s in pairwise(**_AXES, probability_target=[True])]
SMALL = [
    case("compact_mean", bias=True, weight=True, ignored=1, chunk_size=5),
    case("compact_none", classes=(5, 3), reduction="none", chunk_size=5, z_loss=0.1),
    case("compact_soft", probability_target=True, chunk_size=5),
]
# On the CPU these are one call each way.
SINGLE_CALL = [
    case(f"small_{name_of(s)}", **s)
    for s in pairwise(**{**_AXES, "classes": [(11,)], "chunk_size": [None], "reduction": ["mean", "sum"]})
]

_X, _W, _Y = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64)


CONTRACT = Contract(
    small=SMALL,
    accuracy=over([*INDEX, *SOFT], backends=THOROUGH)
    # Their kernels, those of gemm_ and cross_entropy, have cases of every dtype of their own.
    + over([*INDEX, *SOFT], BOTH, SLOW)
    + over(
        [
            case("unbatched", None, bias=True),
            case("unbatched_probabilities", None, probability_target=True),
            case("unbatched_none", None, reduction="none"),
            # Sizes that end inside the GEMM's tiles and the loss's vectors.
            case("odd", 67, (131,), 37, bias=True, chunk_size=32),
            case("large", 257, (1009,), 129, bias=True, chunk_size=100, quick=False),
            case("one", 1, (1,), 1, bias=True),
        ]
    )
    + over([case(f"empty_{r}", 0, bias=True, reduction=r) for r in REDUCTIONS], FLOAT),
    strided_input=over(
        [case("layout", bias=True, weight=True, chunk_size=5, reduction="none")],
        layouts=["transposed", "sliced", "expanded", "offset"],
    ),
    strided_upstream=over([case("upstream", chunk_size=5, reduction="none")]),
    gradcheck=over(
        [
            case("gradcheck_mean", 5, (4,), 3, bias=True, weight=True, chunk_size=2, label_smoothing=0.1),
            case("gradcheck_none", 4, (3, 2), 3, reduction="none", chunk_size=3, z_loss=0.1),
            case("gradcheck_soft", 4, (3,), 2, probability_target=True, reduction="sum", sample_weight=True),
        ]
    )
    + over(SINGLE_CALL[:2], backends=[CPP]),
    opcheck=over(SMALL[:1]) + over(SINGLE_CALL[:2], FLOAT, [CPP]),
    same_bits=over(
        [
            case("threads", 201, (503,), 65, bias=True, weight=True, chunk_size=64, quick=False),
            case("threads_none", 201, (503,), 65, reduction="none", chunk_size=64, quick=False),
            case("runs", 9, bias=True, chunk_size=4),
        ]
    ),
    autocast=over([SMALL[0]], FLOAT),
    meta=(),  # it asks for autocast's state, which there is none of on that device
    bad_arguments=bad(
        "linear_cross_entropy",
        (ValueError, "reduction must be", {"reduction": "meen"}),
        (ValueError, "input must have shape", {"input": torch.zeros(2, 3, 4)}),
        (TypeError, "input must be a floating", {"input": _X.long()}),
        (ValueError, "linear_weight must have shape", {"linear_weight": torch.zeros(4)}),
        (
            ValueError,
            "linear_weight must have shape",
            {"input": _X[0], "linear_weight": torch.zeros(5, 2, 4)},
        ),
        (ValueError, r".*\(in\), got \(3, 4\) and \(5, 3\)", {"linear_weight": torch.zeros(5, 3)}),
        (TypeError, "linear_weight must have the input's dtype", {"linear_weight": _W.double()}),
        (ValueError, r"linear_bias must have shape \(5,\)", {"linear_bias": torch.zeros(4)}),
        (TypeError, "linear_bias must have dtype", {"linear_bias": torch.zeros(5).double()}),
        (ValueError, r"target must have shape \(3,\)", {"target": _Y[:2]}),
        (TypeError, "target must hold int64", {"target": _Y.int()}),
        (TypeError, "target must be a Tensor, got list", {"target": [0, 1, 2]}),
        (ValueError, r"weight must have shape \(5,\)", {"weight": torch.zeros(4)}),
        (ValueError, r"sample_weight must have shape \(3,\)", {"sample_weight": _X[:2, 0]}),
        (ValueError, "label_smoothing must be between 0.0 and 1.0", {"label_smoothing": 2.0}),
        (ValueError, "chunk_size must be at least 1, got 0", {"chunk_size": 0}),
        (ValueError, "ignore_index is not supported", {"target": torch.zeros(3, 5), "ignore_index": 1}),
        (RuntimeError, "target must be on cpu", {"target": _Y.to("meta")}),
        (RuntimeError, "linear_weight must be on cpu", {"linear_weight": _W.to("meta")}),
        input=_X,
        linear_weight=_W,
        target=_Y,
    ),
)


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
