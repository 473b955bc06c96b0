"""nll_loss for the shared suite."""

from __future__ import annotations

import torch
from torch import Tensor

from pyops import functional as F
from pyops.kinds import MEAN, NONE, SUM

from ..backends import BACKENDS
from ..cases import REDUCTIONS, Case, Op, name_of, pairwise, product
from ..class_losses import IGNORED, SHAPES, SIZES, SMOKE_SHAPES, as_rows, loss_case, reduce, row_shape
from ..contract import BOTH, FLOAT, Contract, bad, over, spoiled
from ..mutants import Mutant
from ..triton_cases import BF16, F32, F64, meta


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


def case(id: str, shape: tuple[int, ...], **arguments) -> Case:
    return loss_case("nll_loss", id, shape, **arguments)


AXES = {"shape": SHAPES, "weight": [False, True], "reduction": REDUCTIONS, "ignored": IGNORED}
PAIRWISE = [case(name_of(s), **s) for s in pairwise(**AXES)]
EVERYTHING = [case(name_of(s), **s, quick=False) for s in product(**AXES)]


def _one(value: float):
    def change(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[0, 0] = value
        return logits

    return change


_LAYOUT_CASES = [
    case("layout_rows", (6, 9), weight=True),
    case("layout_image", (2, 5, 3, 4), reduction="none", ignored=1),
    case("layout_unbatched", (7,)),
]
SMALL = [
    case("compact_mean", (3, 5, 4), weight=True, ignored=1),
    case("compact_none", (4, 7), reduction="none"),
    case("compact_unbatched", (7,)),
]

_X, _Y, _ONE = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), torch.ones(())


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(PAIRWISE)
    + over(EVERYTHING, FLOAT, [b for b in BACKENDS if b.name in ("cpp", "cuda")])
    + over(
        [case(f"size_{'x'.join(map(str, s))}", s, weight=True) for s in SIZES]
        + [case("large", (70_001, 3), weight=True, quick=False)],
        BOTH,
    )
    + over(
        [case(f"empty_{s}_{r}", s, reduction=r) for s in [(0, 5), (0, 5, 3), (2, 5, 0)] for r in REDUCTIONS],
        FLOAT,
    )
    + over(
        [
            case(f"{v}_{r}_{i}", (6, 3), change=_one(v), reduction=r, ignored=i)
            for v in (torch.nan, torch.inf, -torch.inf)
            for r in REDUCTIONS
            for i in (None, 1)
        ],
        FLOAT,
    ),
    strided_input=over(_LAYOUT_CASES, BOTH),
    strided_upstream=over(_LAYOUT_CASES[1:2]),
    gradcheck=over([*SMALL[1:], case("gradcheck", (8, 5), weight=True, ignored=1)]),
    same_bits=over(
        [case("threads", (70_001, 3), weight=True, quick=False), case("runs", (300, 7), weight=True)]
    ),
    autocast=over(SMALL[:1], [torch.float32, torch.bfloat16, torch.float16]),
    raw_op_refuses=[
        *spoiled(
            "nll_loss_forward",
            (_X, _Y, None, 1, -100),
            {0: torch.zeros(())},
            {0: _X.long()},
            {0: torch.zeros(5, 3).t()},
            {1: _Y[:2]},
            {1: _Y.int()},
            {1: torch.zeros(6, dtype=torch.int64)[::2]},
            {2: torch.ones(4)},
            {2: torch.ones(5, dtype=torch.float64)},
            {3: 3},
        ),
        *spoiled(
            "nll_loss_backward",
            (_ONE, _Y, None, _ONE, 5, 1, -100, torch.float32),
            {0: torch.ones(3)},
            {0: torch.ones((), dtype=torch.float64)},
            {1: _Y.int()},
            {1: torch.zeros(6, dtype=torch.int64)[::2]},
            {2: torch.ones(4)},
            {3: torch.ones(1)},
            {3: torch.ones((), dtype=torch.float16)},
            {4: -1},
            {5: 0},  # rows want one upstream gradient each
            {5: -1},
            {7: torch.int64},
        ),
    ],
    bad_arguments=bad(
        "nll_loss",
        (ValueError, "reduction must be", {"reduction": "meen"}),
        (ValueError, "input must have at least one dimension", {"input": torch.zeros(())}),
        (TypeError, "input must be a floating", {"input": _X.long()}),
        (TypeError, "target must be a Tensor, got list", {"target": [0, 1, 2]}),
        (ValueError, r"target must have shape \(3,\).*got \(3, 1\)", {"target": _Y[:, None]}),
        (ValueError, r"target must have shape \(3,\).*got \(2,\)", {"target": _Y[:2]}),
        (TypeError, "target must hold int64.*got torch.int32", {"target": _Y.int()}),
        (ValueError, r"weight must have shape \(5,\).*got \(4,\)", {"weight": torch.ones(4)}),
        (TypeError, "weight must be a floating", {"weight": torch.ones(5, dtype=torch.int64)}),
        (RuntimeError, "target must be on cpu.*got meta", {"target": _Y.to("meta")}),
        (RuntimeError, "weight must be on cpu.*got meta", {"weight": _X[0].to("meta")}),
        input=_X,
        target=_Y,
    ),
)


LAYERS = {
    "NLLLoss": [{}, {"reduction": "none"}, {"weight": torch.tensor([0.5, 1.0, 2.0, 0.0]), "ignore_index": 1}],
}


def valid_arguments() -> dict[str, tuple]:
    target, one = torch.randint(0, 5, (3,)), torch.ones(())
    return {
        "nll_loss_forward": (torch.randn(3, 5), target, None, 1, -100),
        "nll_loss_backward": (one, target, None, one, 5, 1, -100, torch.float32),
    }


def _triton(shape: tuple[int, ...], dtype: torch.dtype, reduction: int, weighted: bool) -> None:
    from pyops.triton_kernels.classes import nll_loss

    acc = F64 if dtype == F64 else F32
    target = meta(shape[0], *shape[2:], dtype=torch.int64)
    weight = meta(shape[1], dtype=acc) if weighted else None
    loss, total = nll_loss.nll_loss_forward(meta(*shape, dtype=dtype), target, weight, reduction, -100)
    nll_loss.nll_loss_backward(loss, target, weight, total, shape[1], reduction, -100, dtype)


TRITON_CASES = {
    "nll_loss-float32": lambda: _triton((4096, 1000), F32, MEAN, False),
    "nll_loss-inner-weight-bfloat16": lambda: _triton((8, 21, 64, 64), BF16, NONE, True),
    "nll_loss-many_rows-float64": lambda: _triton((10**8, 10), F64, SUM, True),
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
        "transform(s.classes * s.inner, [] { return Vec<Acc>(Acc(0)); }, image);",
        "",
        ("classes/nll_loss",),
    ),
}
