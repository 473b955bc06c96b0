"""cross_entropy for the shared suite."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyops import functional as F
from pyops.kinds import MEAN, NONE, SUM

from ..backends import BACKENDS, Backend
from ..cases import REDUCTIONS, Case, Op, name_of, pairwise, product
from ..class_losses import (
    EMPTY,
    EXTREME_SHAPES,
    EXTREMES,
    IGNORED,
    LARGE_SIZES,
    SHAPES,
    SIZES,
    SMOKE_SHAPES,
    as_rows,
    loss_case,
    reduce,
    row_shape,
)
from ..contract import BOTH, FLOAT, Contract, bad, over
from ..cuda_code import PACKS
from ..mutants import Mutant
from ..triton_cases import BF16, F16, F32, F64, meta


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


case = partial(loss_case, "cross_entropy")


def _from_settings(settings: dict, quick: bool = True) -> Case:
    return case(name_of(settings), **settings, quick=quick)


# torch's options. Index targets with every smoothing kind (none, some, all) and every place of ignore_index.
_OPTIONS = {
    "shape": SHAPES,
    "weight": [False, True],
    "label_smoothing": [0.0, 0.1, 1.0],
    "reduction": REDUCTIONS,
}
_INDEX_AXES = {**_OPTIONS, "ignored": IGNORED}
_PROBABILITY_AXES = {**_OPTIONS, "probability_target": [True]}
# What torch does not have, with each other and with a sample of what it has.
_EXTRA_AXES = {
    **_OPTIONS,
    "ignored": [None, 1],
    "z_loss": [0.0, 0.1],
    "sample_weight": [False, True],
    "return_lse": [False, True],
    "inplace_backward": [False, True],
}
_EXTRA_PROBABILITY_AXES = {**_EXTRA_AXES, "ignored": [None], "probability_target": [True]}
_PAIRWISE = [
    _from_settings(s)
    for axes in (_INDEX_AXES, _PROBABILITY_AXES, _EXTRA_AXES, _EXTRA_PROBABILITY_AXES)
    for s in pairwise(**axes)
]
_PAIRWISE = list({c.id: c for c in _PAIRWISE}.values())
_EVERYTHING = [
    _from_settings(s, quick=False) for axes in (_INDEX_AXES, _PROBABILITY_AXES) for s in product(**axes)
]


def _sized(shape: tuple[int, ...], quick: bool) -> list[Case]:
    """Every kind of pass over the classes: none of its own, smoothing with weights, probabilities."""
    name = "x".join(map(str, shape))
    return [
        case(f"size_{name}", shape, quick=quick),
        case(f"size_{name}_smoothing_weight", shape, weight=True, label_smoothing=0.2, quick=quick),
        case(f"size_{name}_probabilities", shape, probability_target=True, reduction="sum", quick=quick),
    ]


_EMPTY = [
    case(f"empty_{'x'.join(map(str, s))}_{r}_{target}", s, reduction=r, probability_target=target != "index")
    for s in EMPTY
    for r in REDUCTIONS
    for target in ("index", "probabilities")
]
_EXTREMES = [
    case(f"{name}_{'x'.join(map(str, shape))}_{kind}", shape, change=change, reduction=reduction, **kinds)
    for shape in EXTREME_SHAPES
    for (name, change), reduction in zip(EXTREMES.items(), itertools.cycle(REDUCTIONS))
    for kind, kinds in {
        "plain": {},
        "smoothing_weight": {"label_smoothing": 0.1, "weight": True},
        "probabilities": {"probability_target": True},
        "ignored": {"ignored": 1},
    }.items()
    # Where the softmax saturates, smoothed gradients cancel to e/C of their terms: a matter of luck.
    if (name, kind) != ("spread_1e4", "smoothing_weight")
]
_LAYOUT_CASES = [
    case("layout", (3, 5, 6), reduction="none", ignored=1, weight=True, label_smoothing=0.1),
    case("layout_rows", (6, 9), reduction="mean", sample_weight=True),
    case("layout_image", (2, 5, 3, 4), reduction="none", z_loss=0.1, sample_weight=True, return_lse=True),
    case("layout_probabilities", (2, 5, 3, 4), probability_target=True, reduction="sum", sample_weight=True),
    case("layout_unbatched", (7,), return_lse=True),
]
_GRADCHECK = [
    case("gradcheck_index", (8, 5), weight=True, label_smoothing=0.1, ignored=1),
    case("gradcheck_none", (2, 4, 3), reduction="none", z_loss=0.1, sample_weight=True, return_lse=True),
    case("gradcheck_soft", (3, 4), probability_target=True, weight=True, reduction="sum", z_loss=0.2),
    case("gradcheck_unbatched", (5,), return_lse=True),
]
SMALL = [
    case("compact_index", (3, 5, 4), weight=True, label_smoothing=0.1, ignored=1),
    case("compact_none", (4, 7), reduction="none", z_loss=0.1, sample_weight=True, return_lse=True),
    case("compact_probabilities", (4, 7), probability_target=True, reduction="sum"),
    case("compact_unbatched", (7,)),
    case("compact_inplace", (4, 7), inplace_backward=True),
]

_X, _Y = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)
RAW_BACKWARD = {
    "grad_loss": torch.ones(()), "grad_lse": None, "logits": _X, "target": _Y, "weight": None,
    "sample_weight": None, "stats": torch.zeros(2, 3), "divisor": torch.ones(()),
    "reduction": 1, "ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0,
}  # fmt: skip
_ONLY_BACKWARD = ("grad_loss", "grad_lse", "stats", "divisor")
_RAW_FORWARD = {k: v for k, v in RAW_BACKWARD.items() if k not in _ONLY_BACKWARD}
_BAD_EITHER_WAY = [
    {"logits": torch.zeros(())}, {"logits": _X.long()}, {"logits": _X.to(torch.complex64)},
    {"logits": torch.zeros(5, 3).t()},
    {"target": _Y[:2]}, {"target": _Y.int()}, {"target": torch.zeros(6, dtype=torch.int64)[::2]},
    {"target": torch.zeros(3, 4)}, {"target": _X.double()},
    {"weight": torch.zeros(4)}, {"weight": torch.zeros(5).double()}, {"weight": torch.zeros(10)[::2]},
    {"sample_weight": torch.zeros(2)}, {"sample_weight": torch.zeros(3).half()},
    {"reduction": 3}, {"reduction": -1}, {"label_smoothing": 2.0},
]  # fmt: skip
_BAD_BACKWARD = [
    {"grad_loss": torch.ones(3)}, {"grad_loss": torch.ones(()).double()}, {"grad_lse": torch.ones(2)},
    {"reduction": 0},  # rows want one upstream gradient each
    {"stats": torch.zeros(2, 2)}, {"stats": torch.zeros(6)}, {"stats": torch.zeros(2, 3).double()},
    {"stats": torch.zeros(3, 2).t()},
    {"divisor": torch.ones(1)}, {"divisor": torch.ones(()).double()},
]  # fmt: skip


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(_PAIRWISE)
    + over(_EVERYTHING, FLOAT, [b for b in BACKENDS if b.name in ("cpp", "cuda")])
    + over([c for s in SIZES for c in _sized(s, True)])
    + over([c for s in LARGE_SIZES for c in _sized(s, False)], BOTH)
    + over(_EMPTY, FLOAT)
    + over(_EXTREMES, FLOAT),
    strided_input=over(_LAYOUT_CASES, BOTH),
    strided_upstream=over([c for c in _LAYOUT_CASES if c.options.get("reduction") == "none"]),
    gradcheck=over(_GRADCHECK),
    same_bits=over(
        [
            case("threads_rows", (70_001, 3), quick=False),
            case("threads_classes", (7, 40_009), label_smoothing=0.1, weight=True, quick=False),
            case("threads_panels", (3, 19, 5003), ignored=1, quick=False),
            case("threads_probabilities", (501, 201), probability_target=True, quick=False),
            case("runs", (9, 33), label_smoothing=0.1, weight=True),
        ]
    ),
    autocast=over([SMALL[0], SMALL[2]], [torch.float32, torch.bfloat16, torch.float16]),
    raw_op_refuses=[
        *(("cross_entropy_forward", tuple((_RAW_FORWARD | change).values())) for change in _BAD_EITHER_WAY),
        *(
            (f"cross_entropy_backward{place}", tuple((RAW_BACKWARD | change).values()))
            for place in ("", "_")
            for change in [*_BAD_EITHER_WAY, *_BAD_BACKWARD]
        ),
    ],
    bad_arguments=bad(
        "cross_entropy",
        (ValueError, "reduction must be .*'meen'", {"reduction": "meen"}),
        (ValueError, "reduction must be", {"reduction": None}),
        (ValueError, "input must have at least one dimension", {"input": torch.zeros(())}),
        (TypeError, "input must be a floating.*got torch.int64", {"input": _X.long()}),
        (TypeError, "input must be a Tensor, got list", {"input": [1.0]}),
        (TypeError, "target must be a Tensor, got int", {"target": 3}),
        (ValueError, r"target must have shape \(3,\).*got \(3, 1\)", {"target": _Y[:, None]}),
        (ValueError, r"target must have shape \(3,\).*got \(2,\)", {"target": _Y[:2]}),
        (TypeError, "target must hold int64.*got torch.int32", {"target": _Y.int()}),
        (TypeError, ".*floating point type for target with class prob", {"target": _X.long()}),
        (ValueError, "ignore_index is not supported for class prob", {"target": _X, "ignore_index": 1}),
        (ValueError, r"weight must have shape \(5,\).*got \(4,\)", {"weight": torch.ones(4)}),
        (ValueError, r"weight must have shape \(5,\)", {"weight": torch.ones(1, 5)}),
        (TypeError, "weight must be a floating", {"weight": torch.ones(5, dtype=torch.int64)}),
        (ValueError, r"sample_weight must have shape \(3,\).*got \(4,\)", {"sample_weight": torch.ones(4)}),
        (TypeError, "sample_weight must be a floating", {"sample_weight": _Y}),
        (ValueError, "label_smoothing.*0.0 and 1.0, got 1.5", {"label_smoothing": 1.5}),
        (ValueError, "label_smoothing.*0.0 and 1.0, got -0.1", {"label_smoothing": -0.1}),
        (ValueError, "label_smoothing.*0.0 and 1.0, got nan", {"label_smoothing": float("nan")}),
        (RuntimeError, "target must be on cpu.*got meta", {"target": _Y.to("meta")}),
        (RuntimeError, "weight must be on cpu.*got meta", {"weight": _X[0].to("meta")}),
        (RuntimeError, "sample_weight must be on cpu.*got meta", {"sample_weight": _X[:, 0].to("meta")}),
        input=_X,
        target=_Y,
    ),
)


LAYERS = {
    "CrossEntropyLoss": [
        {},
        {"reduction": "none"},
        {"weight": torch.tensor([0.5, 1.0, 2.0, 0.0]), "label_smoothing": 0.1, "ignore_index": 1},
        {"reduction": "sum", "ignore_index": 255},
    ],
}


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


CUDA_CODE = {"cross_entropy": [PACKS]}


def _triton(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    reduction: int = MEAN,
    probabilities: bool = False,
    all_options: bool = False,
    inplace: bool = False,
) -> None:
    from pyops.triton_kernels.classes import cross_entropy

    acc = F64 if dtype == F64 else F32
    row_shape = (shape[0], *shape[2:])
    logits = meta(*shape, dtype=dtype)
    target = meta(*shape, dtype=dtype) if probabilities else meta(*row_shape, dtype=torch.int64)
    weight = meta(shape[1], dtype=acc) if all_options else None
    per_row = meta(*row_shape, dtype=acc) if all_options else None
    options = (reduction, -100, 0.1 if all_options else 0.0, 1e-4 if all_options else 0.0)
    loss, stats, divisor = cross_entropy.cross_entropy_forward(logits, target, weight, per_row, *options)
    backward = cross_entropy.cross_entropy_backward_ if inplace else cross_entropy.cross_entropy_backward
    backward(loss, per_row, logits, target, weight, per_row, stats, divisor, *options)


TRITON_CASES = {
    "cross_entropy-few_classes-float32": lambda: _triton((4096, 10), F32),
    "cross_entropy-vocabulary-bfloat16": lambda: _triton((4096, 128256), BF16),
    "cross_entropy-inplace-bfloat16": lambda: _triton((4096, 50257), BF16, inplace=True),
    "cross_entropy-all_options-bfloat16": lambda: _triton((4096, 32000), BF16, NONE, all_options=True),
    "cross_entropy-inner-float16": lambda: _triton((8, 21, 128, 128), F16),
    "cross_entropy-inner-all_options-float32": lambda: _triton((8, 150, 50, 50), F32, SUM, all_options=True),
    "cross_entropy-all_options-float64": lambda: _triton((64, 10000), F64, NONE, all_options=True),
    "cross_entropy-probabilities-float32": lambda: _triton((4096, 1000), F32, probabilities=True),
    "cross_entropy-probabilities-all_options-bfloat16": lambda: _triton(
        (4096, 32000), BF16, NONE, probabilities=True, all_options=True
    ),
}


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
        "cpu/classes/cross_entropy_gradients.h",
        "plan.zero = grad_lse == Acc(0);",
        "plan.zero = false;",
        _CE,
    ),
    "ignored_rows_are_multiplied_by_zero_in_panels": Mutant(
        "cpu/classes/cross_entropy_gradients.h",
        "select_greater(keep.vec(i), V(Acc(0)), gradient(i, logit, q), V(Acc(0)))",
        "gradient(i, logit, q) * keep.vec(i)",
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
