"""What the losses over classes share: rows of classes, drawing targets, sizes, extreme logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cases import Case, normal, uniform


def as_rows(tensor: Tensor) -> Tensor:
    """[C] or [N, C, *d] as rows of classes [M, C]."""
    class_dim = min(tensor.dim() - 1, 1)
    rows = torch.Size(row_shape(tensor)).numel()
    return tensor.movedim(class_dim, -1).reshape(rows, tensor.size(class_dim))


def row_shape(tensor: Tensor) -> tuple[int, ...]:
    """Shape of ``tensor`` without its class dimension."""
    class_dim = min(tensor.dim() - 1, 1)
    return (*tensor.shape[:class_dim], *tensor.shape[class_dim + 1 :])


def reduce(row_loss: Tensor, divisor: Tensor | int, reduction: str, shape: tuple[int, ...]) -> Tensor:
    if reduction == "none":
        return row_loss.reshape(shape)
    return row_loss.sum() / divisor if reduction == "mean" else row_loss.sum()


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


# 0 to 3 extra dimensions and the unbatched form. 5, 7: not a power of two and below a vector's width; extra
# dimensions of 30 and 12 elements make the panel of strided rows end inside a vector.
SHAPES = [(7,), (5, 7), (3, 5, 30), (2, 5, 3, 4), (2, 3, 2, 3, 2)]

# Inside [0, C), the usual label of void pixels, and the label that a signed cast of 255 gives.
IGNORED = [None, 1, 255, -1]

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

# For the smoke check. Both end inside a vector of every variant (4 to 16 lanes): 37 classes, and 29 rows
# side by side.
SMOKE_SHAPES = [(9, 37), (2, 5, 29)]
