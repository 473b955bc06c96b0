"""The elementwise losses for the shared suite."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyops import functional as F
from pyops.kinds import MEAN, NONE, SUM

from ..backends import SLOW, THOROUGH
from ..cases import REDUCTIONS, Case, Op, name_of, normal, product, uniform
from ..contract import BOTH, FLOAT, Contract, bad, over, spoiled
from ..mutants import Mutant
from ..triton_cases import BF16, F16, F32, F64, meta


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


def case(
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
        case(op, "smoke_mean", (5, 211)),
        case(op, "smoke_none", (3, 37), reduction="none"),
    )
] + [
    case("mse_loss", "smoke_weight", (5, 211), weight=True),
    case("l1_loss", "smoke_weight", (5, 211), weight=True),
    case("huber_loss", "smoke_weight", (3, 37), weight=True, delta=0.5),
    case("smooth_l1_loss", "smoke_beta", (3, 37), beta=0.5),
    case(BCE, "smoke_rows", (20, 37), weight=(37,), pos_weight=(20, 1)),
    case(BCE, "smoke_few", (2, 3, 211), weight=(3, 1), pos_weight=(2, 1, 1)),
]


_FLOAT = [torch.float32]
BOTH = BOTH
OPTIONS = {
    "mse_loss": [{}, {"weight": True}],
    "l1_loss": [{}, {"weight": True}],
    "huber_loss": [{}, {"weight": True}, {"delta": 0.3}],
    "smooth_l1_loss": [{}, {"beta": 0.3}, {"beta": 0}],
    BCE: [{}, {"weight": True}, {"pos_weight": (7,)}, {"weight": (5, 1), "pos_weight": (7,)}],
}
EVERYTHING = [
    case(op, name_of({**o, "reduction": r}), (5, 7), reduction=r, **o)
    for op, several in OPTIONS.items()
    for o, r in itertools.product(several, REDUCTIONS)
]
# 1 to 4 (below a vector), primes, a chunk of 512 and one more, and more than one block of work. Two rows of
# 259 end inside a vector and after a chunk.
SIZES = [(), (1,), (3,), (16,), (127,), (512,), (513,), (2, 259), (3, 2, 2, 11)]
LARGE_SIZES = [(16_384,), (16_385,), (70_001,), (3, 7, 40, 41)]
# Factors along one run of dimensions (outer, run, inner), read in place, and others, which are expanded.
FACTORS = [
    (), (1,), (5,), (4, 1), (4, 5), (3, 1, 1), (3, 4, 1), (3, 4, 5), (2, 1, 1, 1), (2, 3, 1, 1), (2, 3, 4, 5),
    (3, 1, 5), (2, 1, 4, 1), (2, 1, 1, 5), (1, 1, 1, 5), (1, 1, 1, 1),
]  # fmt: skip
_LAYOUT_CASES = [
    case("huber_loss", "layout", (2, 3, 4, 5), reduction="none"),
    case("mse_loss", "layout", (2, 3, 4, 5), weight=True),
    case(BCE, "layout", (2, 3, 4, 5), reduction="none", weight=(2, 3, 4, 5), pos_weight=(3, 1, 1)),
    case(BCE, "layout_row", (6, 9), pos_weight=(9,)),
]
_FLOAT = [torch.float32]
BOTH = BOTH
SMALL = [
    case("mse_loss", "compact", (3, 5), weight=True),
    case("l1_loss", "compact", (3, 5), reduction="sum"),
    case("huber_loss", "compact", (4, 7), reduction="none"),
    case("smooth_l1_loss", "compact", (4, 7), beta=0.5),
    case(BCE, "compact", (3, 5), weight=(3, 1), pos_weight=(5,)),
]

_X, _ONE, _STRIDED = torch.zeros(3, 5), torch.ones(()), torch.zeros(5, 3).t()
_TENSORS = (_X, _X, _X, 1, torch.ones(5), 1)
_TWO = {"input": _X, "target": _X}


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(EVERYTHING, backends=THOROUGH)
    + over(EVERYTHING, BOTH, SLOW)
    + over(
        [case(op, f"size_{s}", s) for op in ("huber_loss", BCE) for s in SIZES]
        + [case(op, f"size_{s}", s, quick=False) for op in NAMES for s in LARGE_SIZES]
        + [case("mse_loss", "weighted_large", (70_001,), weight=True, quick=False)],
        BOTH,
    )
    + over(
        [
            case(op, f"empty_{s}_{r}", s, reduction=r)
            for op in NAMES
            for s in [(0,), (3, 0)]
            for r in REDUCTIONS
        ]
        + [case("mse_loss", "empty_weight", (0, 2), weight=True), case(BCE, "empty_", (0, 2), weight=(2,))],
        FLOAT,
    )
    + over(
        [
            case(BCE, f"factors_{w}_{p}", (2, 3, 4, 5), weight=w, pos_weight=p, quick=i % 5 == 0)
            for i, (w, p) in enumerate(zip(FACTORS, FACTORS[5:] + FACTORS[:5], strict=True))
        ],
        BOTH,
    )
    + over(
        [
            case(BCE, "columns", (600, 3), weight=(3,), pos_weight=(600, 1)),
            case(BCE, "planes", (2, 3, 700), weight=(3, 1), pos_weight=(700,)),
            case(BCE, "long", (2, 3, 40_001), weight=(40_001,), pos_weight=(3, 1), quick=False),
        ],
        BOTH,
    ),
    strided_input=over(_LAYOUT_CASES),
    strided_upstream=over(_LAYOUT_CASES[:1]),
    compile=(),  # not to the bit where forward writes the gradient: test_loss_autograd.py
    same_bits=over(
        [case(op, "threads", (70_001,), quick=False) for op in ("mse_loss", BCE)]
        + [case("mse_loss", "runs", (700,), weight=True)]
    ),
    autocast=over(
        [
            case(op, name_of({"amp": True, **s}), (3, 5), **s)
            for op in ("mse_loss", "l1_loss", "huber_loss", BCE)
            for s in product(reduction=REDUCTIONS[:2], weight=[False, True])
        ],
        [torch.float32, torch.bfloat16, torch.float16],
        THOROUGH,
    ),
    raw_op_refuses=[
        *spoiled(
            "elementwise_loss_forward",
            (*_TENSORS, 4, 1.0, 1),
            {0: _X.long(), 1: _X.long(), 2: None, 4: None},
            {0: _STRIDED},
            {1: _STRIDED},
            {1: torch.zeros(3, 4)},
            {1: _X.double()},
            {2: _X.double()},
            {2: _STRIDED},
            {2: torch.zeros(0)},
            {3: 0},
            {3: -(2**63)},
            {4: torch.zeros(5, dtype=torch.float16)},
            {5: -1},
            {6: -1},
            {6: 5},
            {6: 0},  # a pos_weight of a difference
            {4: None, 6: 2, 7: 0.0},
            {4: None, 6: 3, 7: float("nan")},
            {8: 3},
        ),
        *spoiled(
            "elementwise_loss_backward",
            (_ONE, *_TENSORS, _ONE, 4, 1.0, 1, False),
            {0: torch.ones(3)},
            {0: torch.ones((), dtype=torch.float64)},
            {2: torch.zeros(3, 4)},
            {7: torch.ones(1)},
            {7: torch.ones((), dtype=torch.float16)},
            {10: 0},  # elements want one upstream gradient each
            {11: True},  # the target's gradient is no difference's
        ),
    ],
    bad_arguments=[
        *bad(
            "mse_loss",
            (ValueError, "reduction must be", {"reduction": "meen"}),
            (TypeError, "target must be a Tensor, got list", {"target": [0.0]}),
            (TypeError, "input must be a Tensor, got float", {"input": 0.5}),
            (TypeError, "input and target must be float", {"input": _X.long(), "target": _X.long()}),
            **_TWO,
        ),
        *bad(
            "huber_loss",
            (TypeError, "input must be a floating", {"input": _X.long()}),
            (RuntimeError, "delta must be positive, got 0.0", {"delta": 0}),
            (RuntimeError, "delta must be positive, got nan", {"delta": torch.nan}),
            (TypeError, "delta must be a number, got str", {"delta": "1"}),
            **_TWO,
        ),
        *bad(
            "l1_loss",
            (RuntimeError, "target must be on cpu.*got meta", {"target": _X.to("meta")}),
            (ValueError, r"weight must have .*\(3, 5\), got \(5,\)", {"weight": torch.ones(5)}),
            (RuntimeError, "weight must be on cpu.*got meta", {"weight": _X.to("meta")}),
            (RuntimeError, r"target must broadcast .*\(3, 5\), got \(4,\)", {"target": _X[0, :4]}),
            **_TWO,
        ),
        *bad(
            "smooth_l1_loss",
            (RuntimeError, "beta must not be negative, got -1.0", {"beta": -1}),
            (TypeError, "beta must be a number, got NoneType", {"beta": None}),
            **_TWO,
        ),
        *bad(
            BCE,
            (ValueError, r"target must have .*\(3, 5\), got \(5,\)", {"target": _X[0]}),
            (TypeError, "target must be a floating", {"target": _X.long()}),
            (TypeError, "input must be a floating", {"input": _X.long()}),
            (RuntimeError, r"weight must broadcast .*got \(3,\)", {"weight": torch.ones(3)}),
            (RuntimeError, r"pos_weight must broadcast .*got \(1, 3, 5\)", {"pos_weight": _X[None]}),
            (TypeError, "weight must be a Tensor, got float", {"weight": 0.5}),
            (RuntimeError, "pos_weight must be on cpu.*got meta", {"pos_weight": _X.to("meta")}),
            **_TWO,
        ),
    ],
)


LAYERS = {
    "MSELoss": [{}, {"reduction": "none"}],
    "L1Loss": [{}, {"reduction": "sum"}],
    "HuberLoss": [{}, {"reduction": "sum", "delta": 0.3}],
    "SmoothL1Loss": [{}, {"reduction": "none", "beta": 0.3}],
    "BCEWithLogitsLoss": [
        {"reduction": "sum"},
        {"weight": torch.tensor([0.5, 1.0, 2.0, 0.0]), "pos_weight": torch.tensor([1.0, 3.0, 0.5, 2.0])},
    ],
}


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


def _triton(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    kind: int,
    reduction: int = MEAN,
    weight: tuple[int, ...] | None = None,
    pos_weight: tuple[int, ...] | None = None,
    inner: int = 1,
    both: bool = False,
) -> None:
    from pyops.triton_kernels import loss

    x = meta(*shape, dtype=dtype)
    factors = [None if f is None else meta(*f, dtype=dtype) for f in (weight, pos_weight)]
    tensors = (x, x, factors[0], inner, factors[1], inner)
    value, divisor = loss.elementwise_loss_forward(*tensors, kind, 0.5, reduction)
    loss.elementwise_loss_backward(value, *tensors, divisor, kind, 0.5, reduction, both)


TRITON_CASES = {
    "mse_loss-float32": lambda: _triton((4096, 1000), F32, 0, both=True),
    "mse_loss-weight-float64": lambda: _triton((1001, 77), F64, 0, SUM, weight=(1001, 77)),
    "l1_loss-bfloat16": lambda: _triton((4096, 1000), BF16, 1),
    "huber_loss-many-float32": lambda: _triton((2**31 + 5,), F32, 2),
    "smooth_l1_loss-none-float16": lambda: _triton((4096, 1000), F16, 3, NONE),
    "binary_cross_entropy-float32": lambda: _triton((4096, 1000), F32, 4),
    "binary_cross_entropy-factors-bfloat16": lambda: _triton(
        (8, 21, 64, 64), BF16, 4, weight=(8, 21, 64, 64), pos_weight=(21, 1, 1), inner=4096
    ),
    "binary_cross_entropy-factors-float64": lambda: _triton(
        (64, 1000), F64, 4, NONE, weight=(1000,), pos_weight=(1000,)
    ),
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
