"""What the losses over classes share: targets, weights and the shapes of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ...dtypes import acc_dtype, is_plain_sixteen_bit
from .checks import DtypeError, check_device, check_floating, check_shape

#: With at most so many classes torch's kernels over classes are slow.
_FEW_CLASSES = 16


def by_classes(op: str, input: Tensor, dim: int) -> str:
    """The entry of the rule for small tensors (``backends.prefers_torch``)."""
    return op if input.dim() == 0 or input.shape[dim] > _FEW_CLASSES else f"{op}, few classes"


def is_plain(input: Tensor, target: Tensor) -> bool:
    """Whether this is the usual call, [N, C] elements and [N] indices, which needs no normalising.

    On a small batch, one check after the other would cost as much as the kernel.
    """
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and (input.dtype is torch.float32 or is_plain_sixteen_bit(input))
        and target.dtype is torch.int64
        and input.dim() == 2
        and target.dim() == 1
        and input.size(0) == target.size(0)
        and input.is_contiguous()
        and target.is_contiguous()
        and input.device == target.device
    )


def class_indices(function: str, target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``target`` as int64 class indices of ``shape``; uint8 is widened as torch does."""
    if target.dtype is not torch.int64:
        if target.dtype is not torch.uint8:
            raise DtypeError(
                f"{function}: target must hold int64 class indices (expected target dtype to be Long or "
                f"Byte), got {target.dtype}"
            )
        target = target.long()
    meaning = "the input's shape without its class dimension"
    if len(shape) > 0 and target.dim() > 0 and target.shape[0] != shape[0]:
        meaning += f"; Expected input batch_size ({shape[0]}) to match target batch_size ({target.shape[0]})"
    check_shape(function, "target", target, shape, meaning)
    return target.contiguous()


def class_weight(function: str, weight: Tensor | None, classes: int, like: Tensor) -> Tensor | None:
    """``weight`` of shape (C,) in the accumulation dtype of ``like``, or None."""
    if weight is None:
        return None
    check_floating(function, "weight", weight)
    check_device(function, "weight", weight, like)
    check_shape(function, "weight", weight, (classes,), "one weight per class")
    return weight.to(acc_dtype(like.dtype)).contiguous()


def without_class_dim(shape: torch.Size) -> torch.Size:
    """Shape of the rows of a tensor of shape [C] or [N, C, *d]."""
    return shape[:1] + shape[2:] if len(shape) > 1 else shape[:0]


def row_weights(function: str, sample_weight: Tensor, row_shape: torch.Size, like: Tensor) -> Tensor:
    """``sample_weight``, one per row, in the accumulation dtype of ``like``."""
    check_floating(function, "sample_weight", sample_weight)
    check_device(function, "sample_weight", sample_weight, like)
    try:
        expanded = sample_weight.to(acc_dtype(like.dtype)).expand(row_shape)
    except RuntimeError:
        check_shape(function, "sample_weight", sample_weight, tuple(row_shape), "one weight per row")
        raise
    return expanded.contiguous()


def dense_rows(
    logits: Tensor, target: Tensor, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same rows in a contiguous layout, without a copy where the classes lie last or first in memory.

    channels_last logits become [N*d, C], transposed ones [1, C, N*d]; others are copied. Row order, hence
    the order of summation, is kept.
    """
    if logits.dim() > 1:
        last, first = logits.movedim(1, -1), logits.movedim(1, 0)
        has_probabilities = target.shape == logits.shape
        if last.is_contiguous() or first.is_contiguous():
            classes_first = not last.is_contiguous()
            shape = (1, logits.size(1), -1) if classes_first else (-1, logits.size(1))
            rows = (1, -1) if classes_first else (-1,)
            dense = (first if classes_first else last).reshape(shape)
            if has_probabilities:
                target = target.movedim(1, 0 if classes_first else -1).reshape(shape).contiguous()
            else:
                target = target.reshape(rows)
            return dense, target, None if sample_weight is None else sample_weight.reshape(rows)
    return logits.contiguous(), target.contiguous(), sample_weight
