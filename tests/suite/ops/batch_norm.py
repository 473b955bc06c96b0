"""batch_norm for the shared suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyops import functional as F
from pyops.ops.tools.batch_norm import mask_shape

from ..backends import Backend
from ..cases import Case, Op, normal, uniform
from ..layouts import channels_last
from ..mutants import Mutant

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


# Rows in which channels alternate and runs of one channel, in several pieces; the ends lie inside vectors and
# bytes of the mask.
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
]
SMOKE_CHECKS = {"batch_norm_running_statistics": check_running_statistics}


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
        "cpu/batch_norm/run.h",
        "bits_above(v, math",
        "bits_above(residual ? v - load_lanes(residual + i, lanes) : v, math",
        ("batch_norm/batch_norm",),
    ),
    "batch_norm_run_counts_the_missing_lanes": Mutant(
        "cpu/batch_norm/blocks.h", "std::min<int64_t>(kLanes, n - i)), shift));",
        "std::min<int64_t>(kLanes, n - i))));",
        ("batch_norm/batch_norm",),
    ),
    "batch_norm_chunks_of_rows_are_about_different_shifts": Mutant(
        "cpu/batch_norm/blocks.h",
        "const double apart = block.shift[i] - reference[i], within",
        "const double apart = 0, within",
        ("batch_norm/batch_norm",),
    ),
}  # fmt: skip
