"""The ops under test, and the inputs and options they are tried with."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import pyops

from . import formulas
from .backends import BACKENDS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Op:
    """A public function, torch's counterpart with the same arguments, and the formula of both."""

    pyops: Callable[..., Any]
    torch: Callable[..., Any]
    formula: Callable[..., Any]
    differentiable: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One set of arguments: ``make`` draws the tensors in float64, ``options`` are the other arguments."""

    id: str
    op: str
    make: Callable[[torch.Generator], dict[str, Tensor]] = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)
    quick: bool = True

    def __str__(self) -> str:
        return self.id

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensor arguments, the floating ones rounded to ``dtype``; the same on every call."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.id.encode()))
        drawn = self.make(generator)
        return {k: t.to(dtype) if t.is_floating_point() else t for k, t in drawn.items()}


def sweep(
    cases: Iterable[Case],
    dtypes: Iterable[torch.dtype] = DTYPES,
    backends: Iterable[Any] = tuple(BACKENDS),
) -> pytest.MarkDecorator:
    """Parametrise (backend, case, dtype) over everything; slow backends get the quick cases only."""
    cases, dtypes = list(cases), list(dtypes)
    combinations = [
        pytest.param(backend, case, dtype, id=f"{backend}-{case}-{str(dtype)[6:]}")
        for backend in backends
        for case in cases
        for dtype in dtypes
        if case.quick or backend.thorough
    ]
    return pytest.mark.parametrize(("backend", "case", "dtype"), combinations, indirect=["backend"])


def pairwise(seed: int = 0, **axes: Iterable[Any]) -> list[dict[str, Any]]:
    """A small set of combinations in which each pair of values of any two axes occurs."""
    names, values = list(axes), [list(v) for v in axes.values()]
    rng = random.Random(seed)
    axis_pairs = list(itertools.combinations(range(len(names)), 2))
    missing = {
        (a, b, i, j) for a, b in axis_pairs for i in range(len(values[a])) for j in range(len(values[b]))
    }
    chosen = []
    while missing:
        a, b, i, j = min(missing)
        candidates = []
        for _ in range(30):
            candidate = [rng.randrange(len(v)) for v in values]
            candidate[a], candidate[b] = i, j
            covered = {(p, q, candidate[p], candidate[q]) for p, q in axis_pairs} & missing
            candidates.append((len(covered), candidate, covered))
        _, best, covered = max(candidates, key=lambda c: c[0])
        missing -= covered
        chosen.append({n: v[k] for n, v, k in zip(names, values, best, strict=True)})
    return chosen


def product(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


# ------------------------------------------------------------------------------------------- torch's ops


def torch_softmax(input: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.softmax(input, dim)


def torch_log_softmax(input: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.log_softmax(input, dim)


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
    loss = formulas.reduce(rows, divisor, reduction, rows.shape).to(input.dtype)
    return (loss, lse) if return_lse else loss


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


F = pyops.functional
OPS = {
    "softmax": Op(F.softmax, torch_softmax, formulas.softmax, ("input",)),
    "log_softmax": Op(F.log_softmax, torch_log_softmax, formulas.log_softmax, ("input",)),
    "nll_loss": Op(F.nll_loss, torch.nn.functional.nll_loss, formulas.nll_loss, ("input",)),
    "cross_entropy": Op(F.cross_entropy, torch_cross_entropy, formulas.cross_entropy, ("input",)),
    "linear_cross_entropy": Op(
        F.linear_cross_entropy,
        torch_linear_cross_entropy,
        formulas.linear_cross_entropy,
        ("input", "linear_weight", "linear_bias"),
    ),
}


# --------------------------------------------------------------------------------------- drawing tensors


def normal(generator: torch.Generator, shape: tuple[int, ...], scale: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def uniform(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [0.1, 1.5)."""
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 1.4 + 0.1


def class_weights(generator: torch.Generator, classes: int) -> Tensor:
    """Weights per class; that of the last is 0."""
    weight = uniform(generator, (classes,))
    if classes > 1:
        weight[-1] = 0.0
    return weight


def probabilities(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return normal(generator, shape).softmax(min(len(shape) - 1, 1))


def class_indices(
    generator: torch.Generator, shape: tuple[int, ...], classes: int, ignore_index: int | None = None
) -> Tensor:
    """Classes in [0, classes); with ``ignore_index`` about a third of the rows holds it, the first surely
    not (unless nothing else is left)."""
    target = torch.randint(0, max(classes, 1), shape, generator=generator)
    if ignore_index is not None:
        ignored = torch.rand(shape, generator=generator) < 1 / 3
        if ignored.numel():
            ignored.view(-1)[0] = False
            ignored.view(-1)[-1] = ignored.numel() > 1
        target = target.masked_fill(ignored, ignore_index)
    return target


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def loss_case(
    op: str,
    id: str,
    shape: tuple[int, ...],
    *,
    weight: bool = False,
    sample_weight: bool = False,
    probability_target: bool = False,
    ignored: int | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
    quick: bool = True,
    **options: Any,
) -> Case:
    """A case of cross_entropy or nll_loss. ``change`` edits the logits, ``ignored`` is the ignore_index."""
    classes = shape[min(len(shape) - 1, 1)]

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        logits = normal(generator, shape)
        if change is not None:
            logits = change(logits)
        if op == "nll_loss":
            logits = logits.log_softmax(min(len(shape) - 1, 1))
        if probability_target:
            target = probabilities(generator, shape)
        else:
            target = class_indices(generator, rows_of(shape), classes, ignored)
        tensors = {"input": logits, "target": target}
        if weight:
            tensors["weight"] = class_weights(generator, classes)
        if sample_weight:
            tensors["sample_weight"] = uniform(generator, rows_of(shape))
        return tensors

    if ignored is not None:
        options["ignore_index"] = ignored
    return Case(id, op, make, options, quick)


def name_of(settings: dict[str, Any]) -> str:
    """Readable id of a combination of options; what is off is left out."""
    parts = []
    for name, value in settings.items():
        if value is True:
            parts.append(name)
        elif isinstance(value, tuple):
            parts.append("x".join(map(str, value)))
        elif isinstance(value, str):
            parts.append(value)
        elif value not in (None, False, 0.0) or (value == 0 and name == "ignored"):
            parts.append(f"{name}={value}")
    return "_".join(parts)


# -------------------------------------------------------------------------- what losses of classes share

# 0 to 3 extra dimensions and the unbatched form. 5, 7: not a power of two and below a vector's width; extra
# dimensions of 30 and 12 elements make the panel of strided rows end inside a vector.
SHAPES = [(7,), (5, 7), (3, 5, 30), (2, 5, 3, 4), (2, 3, 2, 3, 2)]

# Inside [0, C), the usual label of void pixels, and the label that a signed cast of 255 gives.
IGNORED = [None, 1, 255, -1]

REDUCTIONS = ["none", "mean", "sum"]

# 127, 1009: primes, so that vectors, unrolled loops and tiles all end in a partial step. 4099: one more
# piece than the 4096 elements that C++ visits at a time. 16 and 64 fill vectors exactly; 1 and 2 are the
# fewest classes. Rows: 1 and 2 (below every block), 257 (one more than a block of threads).
SIZES = [(1, 1), (2, 2), (3, 16), (2, 64), (5, 127), (1, 1009), (2, 4099), (257, 3), (1, 2, 257), (2, 17, 33)]

# Thorough backends only: more rows than one block of work, a large vocabulary, a small image.
LARGE_SIZES = [(70_001, 2), (3, 65_537), (2, 3, 131, 127), (2, 1009, 67)]

EMPTY = [(0, 5), (0, 5, 3), (2, 5, 0), (0, 0), (0, 1)]


def _masked(logits: Tensor) -> Tensor:
    """-inf in every third class but the first two, as an attention mask or a forbidden class."""
    logits = logits.clone()
    logits.movedim(min(logits.dim() - 1, 1), 0)[2::3] = -torch.inf
    return logits


def _first_row(value: float) -> Callable[[Tensor], Tensor]:
    def change(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[(0, slice(None), *[0] * (logits.dim() - 2))] = value
        return logits

    return change


def _one_element(value: float) -> Callable[[Tensor], Tensor]:
    def change(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits.view(-1)[1] = value
        return logits

    return change


# What overflows, cancels or turns into NaN when a kernel is careless. Offsets must not matter (pitfall 11):
# -200 makes exp underflow if the maximum starts at 0; at 1e4 and 1e30 the lse of float32 swallows log s.
EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "all_minus_200": lambda x: torch.full_like(x, -200.0),
    "around_minus_200": lambda x: x - 200.0,
    "offset_1e4": lambda x: x + 1e4,
    "offset_1e30": lambda x: x + 1e30,
    "offset_minus_1e30": lambda x: x - 1e30,
    "spread_1e4": lambda x: x * 1e4,
    "masked": _masked,
    "row_of_minus_inf": _first_row(-torch.inf),
    "row_of_plus_inf": _first_row(torch.inf),
    "one_plus_inf": _one_element(torch.inf),
    "one_minus_inf": _one_element(-torch.inf),
    "one_nan": _one_element(torch.nan),
}
# Classes contiguous in less than a vector, in more, in more than one piece; and strided classes.
EXTREME_SHAPES = [(3, 5), (3, 70), (2, 4100), (2, 5, 19)]
