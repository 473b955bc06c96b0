"""nll_loss: the negative log-likelihood of given log-probabilities."""

import torch
import triton
import triton.language as tl

from pyops._library import implement
from pyops.kinds import MEAN, NONE

from ..tools.checks import acc_dtype, check_dense, check_floating, check_reduction
from ..tools.launch import cdiv, launch
from ..tools.math import divide
from ..tools.merge import reduce_partials
from .rows import locate_classes, locate_rows, row_tiles

_BLOCK = 1024


def _layout(target: torch.Tensor, op: str) -> tuple[int, int]:
    """Batch size and number of positions per sample of a target [], or [N, *d]."""
    if target.dtype != torch.int64:
        raise RuntimeError(f"{op}: target must have dtype torch.int64, got {target.dtype}")
    if target.dim() == 0:
        return 1, 1
    inner = 1
    for size in target.shape[1:]:
        inner *= size
    return target.shape[0], inner


@implement("pyops_triton", "nll_loss_forward")
def nll_loss_forward(
    log_probs: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    reduction: int,
    ignore_index: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (0-d, or target-shaped for reduction 0) and the summed weight of the counted targets."""
    op = "nll_loss_forward"
    check_floating(log_probs, op, "log_probs")
    check_dense(log_probs, op, "log_probs", like=log_probs, dtype=log_probs.dtype)
    check_reduction(reduction, op)
    if log_probs.dim() == 0:
        raise RuntimeError(f"{op}: log_probs must have at least one dimension, got a 0-d tensor")
    class_dim = min(1, log_probs.dim() - 1)
    classes = log_probs.shape[class_dim]
    row_shape = log_probs.shape[:class_dim] + log_probs.shape[class_dim + 1 :]
    check_dense(target, op, "target", like=log_probs, dtype=torch.int64, shape=row_shape)
    acc = acc_dtype(log_probs.dtype)
    if weight is not None:
        check_dense(weight, op, "weight", like=log_probs, dtype=acc, shape=(classes,))
    batch, inner = _layout(target, op)
    loss = log_probs.new_empty(row_shape if reduction == NONE else (), dtype=acc)
    total_weight = log_probs.new_empty((), dtype=acc)
    blocks = cdiv(batch * inner, _BLOCK)
    partials = log_probs.new_empty((2, blocks), dtype=acc)
    if blocks > 0:
        launch(
            _forward_kernel, blocks, log_probs.device, log_probs, target, weight,
            loss if reduction == NONE else None, partials, batch * inner, classes, inner, ignore_index,
            ONE_COLUMN=inner == 1, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    reduce_partials(partials, None if reduction == NONE else loss, total_weight, mean=reduction == MEAN)
    return loss, total_weight


@implement("pyops_triton", "nll_loss_backward")
def nll_loss_backward(
    grad_loss: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    total_weight: torch.Tensor,
    num_classes: int,
    reduction: int,
    ignore_index: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Gradient of log_probs: [num_classes] or [N, num_classes, *d], of ``dtype``."""
    op = "nll_loss_backward"
    acc = acc_dtype(dtype)
    check_reduction(reduction, op)
    if num_classes < 0:
        raise RuntimeError(f"{op}: num_classes must not be negative, got {num_classes}")
    batch, inner = _layout(target, op)
    check_dense(target, op, "target", like=target, dtype=torch.int64)
    grad_shape = target.shape if reduction == NONE else ()
    check_dense(grad_loss, op, "grad_loss", like=target, dtype=acc, shape=grad_shape)
    check_dense(total_weight, op, "total_weight", like=target, dtype=acc, shape=())
    if weight is not None:
        check_dense(weight, op, "weight", like=target, dtype=acc, shape=(num_classes,))
    grad_input = torch.empty(
        (*target.shape[:1], num_classes, *target.shape[1:]), dtype=dtype, device=target.device
    )
    check_floating(grad_input, op, "dtype")
    if grad_input.numel() == 0:
        return grad_input
    tiles = row_tiles(num_classes, inner, max_classes=4096)
    splits = tiles.class_blocks
    launch(
        _backward_kernel, tiles.programs(batch) * splits, target.device, grad_loss, target, weight,
        total_weight if reduction == MEAN else None, grad_input, batch, tiles.classes, tiles.inner,
        splits, ignore_index, PER_ROW=reduction == NONE, **tiles.meta,
    )  # fmt: skip
    return grad_input


@triton.jit(do_not_specialize=["rows", "classes", "inner", "ignore_index"])
def _forward_kernel(
    log_probs, target_ptr, weight_ptr, loss_ptr, partials,
    rows: tl.int64, classes: tl.int64, inner: tl.int64, ignore_index: tl.int64,
    ONE_COLUMN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = partials.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    row = pid * BLOCK + tl.arange(0, BLOCK)
    exists = row < rows
    if ONE_COLUMN:
        start = row * classes
    else:
        n = row // inner
        start = n * classes * inner + (row - n * inner)
    y = tl.load(target_ptr + row, mask=exists, other=ignore_index)
    counted = y != ignore_index
    in_range = (y >= 0) & (y < classes) & counted
    log_p = tl.load(log_probs + start + y * inner, mask=in_range, other=float("nan")).to(acc)
    if weight_ptr is not None:
        w = tl.load(weight_ptr + y, mask=in_range, other=0.0)
    else:
        w = tl.full([BLOCK], 1.0, acc)
    # An index out of range poisons its row; an ignored row does not count, whatever it holds.
    loss = tl.where(counted, -log_p * w, 0.0)
    if loss_ptr is not None:
        tl.store(loss_ptr + row, loss, mask=exists)
    tl.store(partials + pid, tl.sum(loss, axis=0))
    tl.store(partials + tl.num_programs(0) + pid, tl.sum(tl.where(counted, w, 0.0), axis=0))


@triton.jit(do_not_specialize=["outer", "classes", "inner", "splits", "ignore_index"])
def _backward_kernel(
    grad_loss, target_ptr, weight_ptr, total_weight, grad_input,
    outer: tl.int64, classes: tl.int64, inner: tl.int64, splits: tl.int64, ignore_index: tl.int64,
    PER_ROW: tl.constexpr, ROW_MAJOR: tl.constexpr, ALIGN: tl.constexpr, STAGES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = grad_loss.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    tile = pid // splits
    classes = classes * ALIGN if ROW_MAJOR else classes
    inner = inner if ROW_MAJOR else inner * ALIGN
    row, start, exists = locate_rows(tile, outer, classes, inner, ROW_MAJOR, BLOCK_R)
    y = tl.load(target_ptr + row, mask=exists, other=ignore_index)
    counted = y != ignore_index
    in_range = (y >= 0) & (y < classes) & counted
    if PER_ROW:
        grad = tl.load(grad_loss + row, mask=exists, other=0.0)
    else:
        grad = tl.load(grad_loss) + tl.zeros([BLOCK_R], acc)
    if total_weight is not None:
        grad = divide(grad, tl.load(total_weight) + tl.zeros([BLOCK_R], acc))
    if weight_ptr is not None:
        grad = grad * tl.load(weight_ptr + y, mask=in_range, other=0.0)
    c, offset, class_exists = locate_classes(
        (pid - tile * splits) * BLOCK_C, classes, inner, ROW_MAJOR, BLOCK_C
    )
    at_target = c[None, :] == y[:, None]
    dx = tl.where(at_target & in_range[:, None], -grad[:, None], 0.0)
    # A class index out of range makes its row NaN instead of pointing outside.
    dx = tl.where((counted & (~in_range))[:, None], float("nan"), dx)
    tl.store(
        grad_input + start[:, None] + offset[None, :],
        dx.to(grad_input.dtype.element_ty),
        mask=exists[:, None] & class_exists[None, :],
    )
