"""batch_norm for the shared suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyops import functional as F
from pyops.kinds import ACTIVATIONS
from pyops.ops.tools.batch_norm import mask_shape

from ..backends import CPP, THOROUGH, TRITON, Backend
from ..cases import Case, Op, normal, uniform
from ..contract import BOTH, FLOAT, Contract, bad, over
from ..cuda_code import PACKS, STRONG_STORES, Code
from ..layouts import LAYOUTS, channels_last
from ..mutants import Mutant
from ..triton_cases import BF16, F16, F32, meta

_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu,
    "elu": torch.nn.functional.elu,
    "gelu": torch.nn.functional.gelu,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
}


def torch_batch_norm(
    input: Tensor, *, residual: Tensor | None = None, activation: str | None = None, **arguments: Any
) -> Tensor:
    arguments = {"running_mean": None, "running_var": None, **arguments}
    output = torch.nn.functional.batch_norm(input, **arguments)
    return _ACTIVATIONS[activation](output if residual is None else output + residual)


def formula(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    shape = [-1 if d == 1 else 1 for d in range(input.dim())]
    others = [d for d in range(input.dim()) if d != 1]
    if training and input.numel() > 0:
        mean = input.mean(others)
        var = (input - mean.view(shape)).square().mean(others)
    else:
        mean, var = running_mean, running_var
    if mean is None:
        mean, var = input.new_zeros(input.shape[1]), input.new_ones(input.shape[1])
    output = (input - mean.view(shape)) / (var + eps).sqrt().view(shape)
    if weight is not None:
        output = output * weight.view(shape)
    if bias is not None:
        output = output + bias.view(shape)
    return _ACTIVATIONS[activation](output if residual is None else output + residual)


def pyops_batch_norm(input: Tensor, **arguments: Any) -> Tensor:
    return F.batch_norm(input, **{"running_mean": None, "running_var": None, **arguments})


OPS = {
    "batch_norm": Op(
        pyops_batch_norm, torch_batch_norm, formula, ("input", "weight", "bias", "residual")
    )
}  # fmt: skip


def case(
    shape: tuple[int, ...],
    *,
    training: bool = True,
    affine: bool = True,
    running: bool = True,
    residual: bool = False,
    last: bool = False,
    offset: float = 0.5,
    deviation: float = 2.0,
    quick: bool = True,
    **options: Any,
) -> Case:
    """Values of ``deviation`` around ``offset``; ``last`` is channels_last."""

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        channels = (shape[1],)
        x = normal(generator, shape, deviation) + offset
        tensors = {"input": channels_last(x) if last else x}
        if running or not training:
            tensors["running_mean"] = normal(generator, channels, 1.0)
            tensors["running_var"] = uniform(generator, channels)
        if affine:
            tensors["weight"], tensors["bias"] = (
                uniform(generator, channels),
                normal(generator, channels, 1.0),
            )
        if residual:
            r = normal(generator, shape, 1.0)
            tensors["residual"] = channels_last(r) if last else r
        return tensors

    parts = ["batch_norm", "x".join(map(str, shape)), options.get("activation"), residual and "residual"]
    parts += [last and "last", not training and "eval", not affine and "plain", not running and "untracked"]
    parts += [offset != 0.5 and f"offset={offset}"]
    name = "_".join(str(p) for p in parts if p)
    return Case(name, "batch_norm", make, {"training": training, **options}, quick)


def check_running_statistics(backend: Backend) -> None:
    """Both are updated once, by torch's rule, in either layout."""
    for x in (torch.randn(5, 7), torch.randn(3, 4, 5, 7), torch.randn(2, 3, 70, 61)):
        x = (x * 3 + 2).to(backend.device)
        for moved in (x, channels_last(x)):
            channels = x.shape[1]
            ours = [torch.randn(channels), torch.rand(channels)]
            ours = [t.to(backend.device) for t in ours]
            theirs = [t.clone() for t in ours]
            F.batch_norm(moved, *ours, training=True, momentum=0.3, activation="relu")
            torch.nn.functional.batch_norm(x, *theirs, training=True, momentum=0.3)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# Rows in which channels alternate, runs of one channel, in several pieces, and strips of short runs; the ends
# lie inside vectors and bytes of the mask.
SMOKE = [
    case((301, 21), activation="relu"),
    case((37, 21), residual=True, activation="relu"),
    case((9, 5, 3), training=False, activation="silu"),
    case((5, 3, 7, 19), activation="relu"),
    case((5, 3, 7, 19), residual=True, activation="relu"),
    case((5, 3, 7, 19), residual=True, activation="silu"),
    case((2, 3, 70, 61), training=False),
    case((2, 3, 70, 61), affine=False),
    case((3, 37, 5, 7), last=True, residual=True),
    case((5, 67, 3, 7), activation="relu", residual=True),
]
SMOKE_CHECKS = {"batch_norm_running_statistics": check_running_statistics}


# Rows in which channels alternate, short runs among them, and long runs of one channel.
_SIZES = [
    case((37, 5), activation="relu"),
    case((9, 5, 3), residual=True, activation="relu"),
    case((5, 3, 7, 19), residual=True, activation="relu"),
    case((3, 5, 3, 7), last=True),
]
_OPTIONS = [
    case((7, 5), training=False),
    case((7, 5), training=False, activation="relu", residual=True, quick=False),
    case((2, 3, 5, 13), training=False, activation="relu", quick=False),
    case((2, 3, 5, 13), affine=False, running=False),
    case((2, 3, 5, 7), last=True, activation="silu", residual=True),
    case((2, 3, 5, 13), activation="gelu", quick=False),
    case((2, 3, 5, 13), activation="sigmoid", residual=True, quick=False),
    case((2, 3, 5, 13), last=True, training=False, activation="elu"),
    case((2, 3, 5, 13), eps=0.5, momentum=1.0, quick=False),
]
_SHAPES = [
    case((5, 1)),
    case((40, 1), activation="relu", residual=True, quick=False),
    case((0, 3)),
    case((0, 3, 4, 5), activation="relu", residual=True),
    case((4, 0, 5), affine=False, quick=False),
    case((1, 2, 1, 5)),
    case((1, 2, 17), quick=False),
    case((2, 3, 2, 3, 4), residual=True, activation="relu"),
]
# Several pieces of a run, chunks of rows, strips of columns, strips of whole channels; channels that threads
# take whole and channels that they share.
_LARGE = [
    case((3, 5, 70, 121), activation="relu", residual=True, quick=False),
    case((2, 300, 20, 20), activation="relu", quick=False),
    case((4099, 19), activation="relu", residual=True, quick=False),
    case((11, 2500), residual=True, activation="relu", quick=False),
    case((8, 67, 30, 31), last=True, activation="relu", quick=False),
    case((700, 131, 7), residual=True, quick=False),
    case((5, 67, 3, 7), activation="relu", residual=True, quick=False),
    case((131, 67, 5), activation="silu", residual=True, quick=False),
    case((131, 67, 5), training=False, quick=False),
]
SMALL = [
    case((4, 5), activation="silu"),
    case((2, 3, 4, 5), residual=True, activation="relu"),
    case((2, 3, 4, 5), training=False, activation="relu"),
]
_X, _V, _D = torch.zeros(3, 5, 2), torch.ones(5), torch.zeros(5).double()
_PAIR, _M = torch.zeros(2, 5).double(), torch.zeros(3, 2, dtype=torch.uint8)
_TAIL = (1, 0.0, 0.0)
_IMAGE, _C = torch.ones(2, 3, 4, 5), torch.ones(3)


def _forward(*, x=_X, w=_V, b=_V, r=None, m=_V, v=_V, s=None, dim=1, training=True, tail=_TAIL, mask=False):
    return "batch_norm_forward", (x, w, b, r, m, v, s, dim, training, 0.1, 1e-5, *tail, mask)


def _backward(*, g=_X, x=_X, w=_V, b=_V, r=None, mask=None, mean=_D, rstd=_V, means=None, dim=1, tail=_TAIL):
    return "batch_norm_backward", (g, x, w, b, r, mask, mean, rstd, means, dim, True, *tail, True, True, True)


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(_SIZES) + over(_OPTIONS, BOTH) + over(_SHAPES, FLOAT) + over(_LARGE, BOTH, [CPP]),
    strided_input=over(
        [case((6, 7)), case((2, 5, 3, 4), residual=True, activation="relu")],
        layouts=[name for name in LAYOUTS if name != "expanded"],  # whose deviations are all 0
    ),
    strided_upstream=over([case((2, 5, 3, 4), residual=True, activation="relu")]),
    gradcheck=over(
        [*SMALL, case((3, 2, 17), residual=True, activation="silu"), case((3, 2), training=False)],
        backends=[CPP, TRITON],
    ),
    compile=over([*SMALL, case((2, 5, 3, 7), last=True, activation="relu")], FLOAT),
    same_bits=over([*_LARGE, *SMALL], FLOAT, [CPP]),
    autocast=over(SMALL, [torch.float32, torch.bfloat16, torch.float64], THOROUGH),
    raw_op_refuses=[
        _forward(dim=0),
        _forward(dim=3),
        _forward(dim=-1),
        _forward(x=_X.transpose(0, 1)),
        _forward(x=_X.long()),
        _forward(w=_V[:4]),
        _forward(b=_V.double()),
        _forward(b=_V.bfloat16()),
        _forward(m=torch.ones(10)[::2]),
        _forward(r=_X[:2]),
        _forward(r=_X.double()),
        _forward(s=_PAIR.float()),
        _forward(s=_PAIR[:1]),
        _forward(m=None, v=None, training=False),
        _forward(m=None, training=False),
        _forward(tail=(len(ACTIVATIONS), 0.0, 0.0)),
        _forward(tail=(0, 0.0, 0.0), mask=True),
        _backward(g=_X[:2]),
        _backward(g=_X.double()),
        _backward(w=_V[:4]),
        _backward(r=_X.bfloat16()),
        _backward(mask=_M[:2]),
        _backward(mask=_M.int()),
        _backward(mask=_M, tail=(0, 0.0, 0.0)),
        _backward(mean=_V),
        _backward(rstd=_D),
        _backward(rstd=_V[:4]),
        _backward(means=_PAIR.float()),
        _backward(dim=2),
        _backward(tail=(-1, 0.0, 0.0)),
        ("batch_norm_statistics", (_X, 3)),
        ("batch_norm_statistics", (_X.int(), 1)),
        ("batch_norm_backward_sums", (_X, _X, _V, _V, None, _M[:1], _D, _V, 1, *_TAIL)),
        ("batch_norm_backward_sums", (_X[:1], _X, _V, _V, None, None, _D, _V, 1, *_TAIL)),
    ],
    bad_arguments=bad(
        "batch_norm",
        (TypeError, "input must be a Tensor, got list", ([1.0], None, None), {}),
        (TypeError, "input must be a floating.*int64", (_IMAGE.long(), None, None), {}),
        (ValueError, r"input must have shape \(N, C, \*\), got \(3,\)", (_C, _C, _C), {}),
        (ValueError, ".*both be tensors or both be None", (_IMAGE, _C, None), {}),
        (ValueError, ".*must be given unless training", (_IMAGE, None, None), {}),
        (
            ValueError,
            r"running_mean must have shape \(3,\) .*got \(4,\)",
            (_IMAGE, torch.ones(4), torch.ones(4)),
            {},
        ),
        (ValueError, r"weight must have shape \(3,\) .*got \(3, 1\)", (_IMAGE, _C, _C, _C[:, None]), {}),
        (ValueError, r"bias must have shape \(3,\)", (_IMAGE, _C, _C, _C, _C[:2]), {}),
        (
            TypeError,
            "running_mean must have dtype torch.float32, got torch.float64",
            (_IMAGE, _C.double(), _C.double()),
            {},
        ),
        (
            TypeError,
            "running_var must have dtype torch.float32, got torch.float16",
            (_IMAGE, _C, _C.half()),
            {},
        ),
        (
            TypeError,
            "weight must have dtype torch.bfloat16 as running_mean has, got torch.float32",
            (_IMAGE.bfloat16(), _C.bfloat16(), _C.bfloat16(), _C),
            {},
        ),
        (
            RuntimeError,
            "weight must be on cpu as the input is, got meta",
            (_IMAGE, _C, _C, _C.to("meta")),
            {},
        ),
        (RuntimeError, "residual must be on cpu", (_IMAGE, _C, _C), {"residual": _IMAGE.to("meta")}),
        (ValueError, r"residual must have shape \(2, 3, 4, 5\)", (_IMAGE, _C, _C), {"residual": _IMAGE[:1]}),
        (TypeError, "residual must have the input's dtype", (_IMAGE, _C, _C), {"residual": _IMAGE.double()}),
        (
            ValueError,
            "expected more than 1 value per channel .* got input of shape",
            (torch.ones(1, 3), None, None),
            {"training": True},
        ),
        (
            ValueError,
            "expected more than 1 value per channel",
            (torch.ones(1, 3, 1, 1), _C, _C),
            {"training": True},
        ),
        (ValueError, "eps must be positive, got 0", (_IMAGE, _C, _C), {"training": True, "eps": 0.0}),
        (ValueError, "eps must be at least 0, got -1", (_IMAGE, _C, _C), {"eps": -1.0}),
        (TypeError, "momentum must be a number, got None", (_IMAGE, _C, _C), {"momentum": None}),
        (ValueError, "activation must be None or one of", (_IMAGE, _C, _C), {"activation": "relu7"}),
        (
            RuntimeError,
            "running_mean cannot be differentiated",
            (_IMAGE, torch.ones(3, requires_grad=True), _C),
            {},
        ),
    ),
)


LAYERS = {
    "BatchNorm1d": [
        {"num_features": 4},
        {"num_features": 4, "momentum": None},
        {"num_features": 4, "affine": False},
        {"num_features": 4, "track_running_stats": False, "eps": 1e-3},
        {"num_features": 4, "bias": False},
    ],
    "BatchNorm2d": [{"num_features": 6}, {"num_features": 6, "momentum": 0.5}],
}


def valid_arguments() -> dict[str, tuple]:
    x, vector, pair = torch.randn(3, 5, 2), torch.rand(5), torch.rand(2, 5).double()
    mask = torch.zeros(mask_shape(x.shape, 1), dtype=torch.uint8)
    activation = (1, 0.0, 0.0)
    statistics = (vector.double(), vector)
    forward = (x, vector, vector, x, vector.clone(), vector.clone())
    return {
        "batch_norm_forward": (*forward, None, 1, True, 0.1, 1e-5, *activation, True),
        "batch_norm_backward": (
            *(x, x, vector, vector, None, mask, *statistics, pair, 1, True, *activation),
            *(True, True, True),
        ),
        "batch_norm_statistics": (x, 1),
        "batch_norm_backward_sums": (x, x, vector, vector, None, mask, *statistics, 1, *activation),
    }


CUDA_CODE = {"batch_norm": [Code(has=PACKS.has, lacks=(STRONG_STORES,))]}  # its mask is bytes


def _triton(
    shape: tuple[int, ...], dim: int, dtype: torch.dtype, kind: int = 1, *, residual: bool = False
) -> None:
    from pyops.triton_kernels.batch_norm import batch_norm

    x, vector = meta(*shape, dtype=dtype), meta(shape[dim])
    r = x if residual else None
    masked = residual and kind == 1
    forward = (x, vector, vector, r, vector, vector, None, dim, True, 0.1, 1e-5, kind, 0.0, 0.0, masked)
    y, mean, rstd, mask = batch_norm.batch_norm_forward(*forward)
    saved = (x, vector, vector, r if kind > 1 else None, mask if masked else None, mean, rstd)
    batch_norm.batch_norm_backward(y, *saved, None, dim, True, kind, 0.0, 0.0, True, True, residual)


TRITON_CASES = {
    "batch_norm-relu-float32": lambda: _triton((32, 64, 112, 112), 1, F32),
    "batch_norm-residual-relu-channels_last-bfloat16": lambda: _triton(
        (32, 56, 56, 64), 3, BF16, residual=True
    ),
    "batch_norm-residual-silu-odd-float16": lambda: _triton((33, 65, 7, 7), 1, F16, 10, residual=True),
    "batch_norm-rows-float32": lambda: _triton((1001, 77), 1, F32, 0),
}


MUTANTS = {
    "batch_norm_statistics_forget_to_merge_the_means": Mutant(
        "math/batch_norm.h",
        "a.m2 + b.m2 + delta * delta * a.count * part",
        "a.m2 + b.m2",
        ("batch_norm/batch_norm",),
    ),
    "batch_norm_running_variance_is_biased": Mutant(
        "math/batch_norm.h", "variance * (count / (count - 1.0))", "variance", ("batch_norm/batch_norm",)
    ),
    "batch_norm_gradient_ignores_the_mean": Mutant(
        "math/batch_norm.h", "-s * mean_grad - slope * rest", "-slope * rest", ("batch_norm/batch_norm",)
    ),
    "batch_norm_eval_goes_through_the_batch": Mutant(
        "cpu/batch_norm/batch_norm.cpp",
        "needs_input && training;",
        "needs_input;",
        ("batch_norm/batch_norm",),
    ),
    "batch_norm_mask_is_taken_before_the_residual": Mutant(
        "cpu/batch_norm/elements.h",
        "bits_above(v, math",
        "bits_above(of.residual ? v - load_lanes(of.residual + i, lanes) : v, math",
        ("batch_norm/batch_norm",),
    ),
    "batch_norm_run_counts_the_missing_lanes": Mutant(
        "cpu/batch_norm/runs.h", "std::min<int64_t>(kLanes, n - i)), shift));",
        "std::min<int64_t>(kLanes, n - i))));",
        ("batch_norm/batch_norm",),
    ),
    "batch_norm_chunks_of_rows_are_about_different_shifts": Mutant(
        "cpu/batch_norm/columns.h",
        "const double apart = block.shift[i] - reference[i], within",
        "const double apart = 0, within",
        ("batch_norm/batch_norm",),
    ),
    "batch_norm_strips_forget_the_columns_before": Mutant(
        "cpu/batch_norm/strips.h",
        "sums[lane] += static_cast<double>(to_acc(values[i + lane]));",
        "sums[lane] = static_cast<double>(to_acc(values[i + lane]));",
        ("batch_norm/batch_norm",),
    ),
}  # fmt: skip
