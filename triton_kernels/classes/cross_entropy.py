"""Softmax cross-entropy: forward with row statistics, backward, and backward into the logits' storage.

Forward reads the logits once and saves two numbers a row, from which backward recomputes the
probabilities while it reads the logits a second time. Formulas as in csrc/math/cross_entropy.h.
"""

from dataclasses import dataclass
from typing import Any

import torch

from pyops._library import implement
from pyops.kinds import MEAN, NONE

from ..tools.checks import acc_dtype, check_dense, check_floating, check_reduction
from ..tools.launch import cdiv, launch
from ..tools.merge import reduce_partials
from .cross_entropy_rows import BackwardTensors, ForwardTensors, backward_kernel, forward_kernel
from .rows import RowTiles, row_tiles

# Blocks of classes that one program of the backward kernel works on when it shares a row with others:
# enough to prefetch one while another is computed.
_BLOCKS_OF_A_SPLIT = 4


@dataclass(frozen=True)
class _Problem:
    """Checked arguments that forward and backward share."""

    batch: int
    classes: int
    inner: int
    row_shape: tuple[int, ...]
    has_probabilities: bool

    @property
    def rows(self) -> int:
        return self.batch * self.inner


def _check(
    op: str,
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    sample_weight: torch.Tensor | None,
    reduction: int,
    label_smoothing: float,
) -> _Problem:
    check_floating(logits, op, "logits")
    check_dense(logits, op, "logits", like=logits, dtype=logits.dtype)
    check_reduction(reduction, op)
    if logits.dim() == 0:
        raise RuntimeError(f"{op}: logits must have at least one dimension, got a 0-d tensor")
    shape = tuple(logits.shape)
    class_dim = min(1, len(shape) - 1)
    inner = 1
    for size in shape[2:]:
        inner *= size
    problem = _Problem(
        batch=shape[0] if class_dim else 1,
        classes=shape[class_dim],
        inner=inner,
        row_shape=shape[:class_dim] + shape[class_dim + 1 :],
        has_probabilities=target.dtype != torch.int64,
    )
    acc = acc_dtype(logits.dtype)
    if not 0 <= label_smoothing <= 1:
        raise RuntimeError(f"{op}: label_smoothing must be between 0 and 1, got {label_smoothing}")
    if problem.has_probabilities:
        check_dense(target, op, "target", like=logits, dtype=logits.dtype, shape=shape)
    else:
        check_dense(target, op, "target", like=logits, dtype=torch.int64, shape=problem.row_shape)
    if weight is not None:
        check_dense(weight, op, "weight", like=logits, dtype=acc, shape=(problem.classes,))
    if sample_weight is not None:
        check_dense(sample_weight, op, "sample_weight", like=logits, dtype=acc, shape=problem.row_shape)
    return problem


def _tiles(problem: _Problem, dtype: torch.dtype) -> RowTiles:
    if dtype == torch.float64:  # three running sums of twice the width have to fit into registers
        return row_tiles(problem.classes, problem.inner, max_classes=1024, tile_size=1024)
    return row_tiles(problem.classes, problem.inner, max_classes=4096)


def _options(problem: _Problem, label_smoothing: float, z_loss: float, reduction: int) -> dict[str, Any]:
    return {
        "PROBABILITIES": problem.has_probabilities,
        "SMOOTHING": label_smoothing > 0,
        "Z_LOSS": z_loss != 0,
        "PER_ROW": reduction == NONE,
    }


@implement("pyops_triton", "cross_entropy_forward")
def cross_entropy_forward(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    sample_weight: torch.Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, row statistics [2, rows] (maximum, log of the shifted sum) and the mean's divisor."""
    op = "cross_entropy_forward"
    p = _check(op, logits, target, weight, sample_weight, reduction, label_smoothing)
    acc = acc_dtype(logits.dtype)
    loss = logits.new_empty(p.row_shape if reduction == NONE else (), dtype=acc)
    stats = logits.new_empty((2, p.rows), dtype=acc)
    divisor = logits.new_empty((), dtype=acc)
    tiles = _tiles(p, logits.dtype)
    # At least one program, because it is a program that writes the divisor.
    programs = max(1, tiles.programs(p.batch))
    partials = None if reduction == NONE else logits.new_empty((2, programs), dtype=acc)
    launch(
        forward_kernel, programs, logits.device,
        ForwardTensors(
            logits, target, weight, sample_weight, loss if reduction == NONE else None, partials, stats,
            None if reduction == MEAN else divisor,
        ),
        p.batch, tiles.classes, tiles.inner, tiles.class_blocks, ignore_index, label_smoothing, z_loss,
        **_options(p, label_smoothing, z_loss, reduction), **tiles.meta,
    )  # fmt: skip
    if partials is not None:
        mean = reduction == MEAN
        reduce_partials(partials, loss, divisor if mean else None, mean=mean)
    return loss, stats, divisor


@implement("pyops_triton", "cross_entropy_backward")
def cross_entropy_backward(
    grad_loss: torch.Tensor, grad_lse: torch.Tensor | None, logits: torch.Tensor, *others: Any
) -> torch.Tensor:
    """Gradient of the logits, in their shape and dtype; the other arguments are those of _backward."""
    grad_logits = torch.empty_like(logits)
    _backward("cross_entropy_backward", grad_logits, grad_loss, grad_lse, logits, *others)
    return grad_logits


@implement("pyops_triton", "cross_entropy_backward_")
def cross_entropy_backward_(
    grad_loss: torch.Tensor, grad_lse: torch.Tensor | None, logits: torch.Tensor, *others: Any
) -> None:
    """Overwrite ``logits`` with their gradient; the other arguments are those of _backward."""
    _backward("cross_entropy_backward_", logits, grad_loss, grad_lse, logits, *others)


def _backward(
    op: str,
    grad_logits: torch.Tensor,
    grad_loss: torch.Tensor,
    grad_lse: torch.Tensor | None,
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    sample_weight: torch.Tensor | None,
    stats: torch.Tensor,
    divisor: torch.Tensor,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    p = _check(op, logits, target, weight, sample_weight, reduction, label_smoothing)
    acc = acc_dtype(logits.dtype)
    grad_shape = p.row_shape if reduction == NONE else ()
    check_dense(grad_loss, op, "grad_loss", like=logits, dtype=acc, shape=grad_shape)
    if grad_lse is not None:
        check_dense(grad_lse, op, "grad_lse", like=logits, dtype=acc, shape=p.row_shape)
    check_dense(stats, op, "stats", like=logits, dtype=acc, shape=(2, p.rows))
    check_dense(divisor, op, "divisor", like=logits, dtype=acc, shape=())
    if logits.numel() == 0:
        return
    tiles = _tiles(p, logits.dtype)
    # Class indices: every element of the gradient stands alone, so a long row is split among programs.
    # Probabilities: the row first needs a sum over its classes, so one program does all of it.
    blocks = tiles.class_blocks
    if not p.has_probabilities:
        blocks = min(blocks, _BLOCKS_OF_A_SPLIT)
    splits = cdiv(tiles.class_blocks, blocks)
    weight_sum = None
    if weight is not None and label_smoothing > 0 and not p.has_probabilities:
        weight_sum = weight.new_empty(())
        reduce_partials(weight.view(1, -1), weight_sum, None)
    launch(
        backward_kernel, tiles.programs(p.batch) * splits, logits.device,
        BackwardTensors(
            grad_logits, grad_loss, grad_lse, logits, target, weight, weight_sum, sample_weight, stats,
            divisor,
        ),
        p.batch, tiles.classes, tiles.inner, splits, blocks, ignore_index, label_smoothing, z_loss,
        **_options(p, label_smoothing, z_loss, reduction), **tiles.meta,
    )  # fmt: skip
