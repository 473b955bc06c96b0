"""The kernels of cross-entropy, over tiles of rows; formulas as in csrc/math/cross_entropy.h."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..tools.math import INFINITY, divide, exp
from .online_softmax import finish_log_sum, log_probability, shift_of
from .rows import locate_classes, locate_rows


class ForwardTensors(NamedTuple):
    """What forward reads and writes.

    ``logits``, ``target``, ``weight`` and ``sample_weight``: the op's inputs; ``loss``: each row's, or None;
    ``partials`` [2, programs]: sums of the losses and of their weights, or None; ``stats`` [2, rows]:
    maximum and log of the shifted sum; ``divisor``: gets 1, unless None.
    """

    logits: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor | None
    sample_weight: torch.Tensor | None
    loss: torch.Tensor | None
    partials: torch.Tensor | None
    stats: torch.Tensor
    divisor: torch.Tensor | None


class BackwardTensors(NamedTuple):
    """What backward reads and writes.

    ``grad_logits``: the result; ``grad_loss`` and ``grad_lse``, unless None: gradients of forward's results;
    ``logits``, ``target``, ``weight`` and ``sample_weight``: forward's inputs; ``weight_sum``: of ``weight``,
    where labels are smoothed; ``stats`` and ``divisor``: as forward left them.
    """

    grad_logits: torch.Tensor
    grad_loss: torch.Tensor
    grad_lse: torch.Tensor | None
    logits: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor | None
    weight_sum: torch.Tensor | None
    sample_weight: torch.Tensor | None
    stats: torch.Tensor
    divisor: torch.Tensor


@triton.jit
def smoothed(probability, on_target, uniform, SMOOTHING: tl.constexpr):
    if SMOOTHING:
        return probability * on_target + uniform
    else:
        return probability


@triton.jit
def weighted(q, weight, c, class_exists):
    if weight is not None:
        q = q * tl.load(weight + c, mask=class_exists, other=0.0)[None, :]
    return q


@triton.jit
def add_z_loss(loss, z_loss, maximum, log_sum, Z_LOSS: tl.constexpr):
    if Z_LOSS:
        lse = maximum + log_sum
        loss += tl.full([], z_loss, loss.dtype) * lse * lse
    return loss


@triton.jit
def _sums_of_rows(
    tensors, start, row_exists, classes, inner, class_blocks, on_target, uniform,
    PROBABILITIES: tl.constexpr, SMOOTHING: tl.constexpr, ROW_MAJOR: tl.constexpr, STAGES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Each row's maximum, log-sum and, with probabilities or smoothing, the sum of its weighted losses.

    One pass: running maximum m and sum s, and with q_c the weights of the -log p_c,
    sum_c q_c (-log p_c) = log s sum_c q_c - sum_c q_c (x_c - m).
    """
    storage: tl.constexpr = tensors.logits.dtype.element_ty
    acc: tl.constexpr = tensors.stats.dtype.element_ty
    SUM_Q: tl.constexpr = PROBABILITIES or SMOOTHING
    maximum = tl.full([BLOCK_R], -INFINITY, acc)
    sums = tl.zeros([BLOCK_R, BLOCK_C], acc)
    q_sums = tl.zeros([BLOCK_R, BLOCK_C], acc)
    qx_sums = tl.zeros([BLOCK_R, BLOCK_C], acc)
    for block in tl.range(0, class_blocks, num_stages=STAGES):
        first = block * BLOCK_C
        c, offset, class_exists = locate_classes(first, classes, inner, ROW_MAJOR, BLOCK_C)
        mask = row_exists[:, None] & class_exists[None, :]
        offsets = start[:, None] + offset[None, :]
        x = tl.load(tensors.logits + offsets, mask=mask, other=-INFINITY).to(acc)
        larger = tl.maximum(maximum, tl.max(x, axis=1))
        shift = shift_of(larger)
        decay = exp(maximum - shift, storage)
        sums = sums * decay[:, None] + exp(x - shift[:, None], storage)
        if SUM_Q:
            q = tl.full([BLOCK_R, BLOCK_C], 1.0, acc)
            if PROBABILITIES:
                t = tl.load(tensors.target + offsets, mask=mask, other=0.0).to(acc)
                q = smoothed(t, on_target, uniform, SMOOTHING)
            q = weighted(q, tensors.weight, c, class_exists)
            qx_sums -= q_sums * (shift - shift_of(maximum))[:, None]
            qx_sums += tl.where(mask, q * (x - shift[:, None]), 0.0)
            q_sums += tl.where(mask, q, 0.0)
        maximum = larger
    log_sum = finish_log_sum(maximum, tl.sum(sums, axis=1))
    q_nll = log_sum  # without SUM_Q, never used
    if SUM_Q:
        q_nll = log_sum * tl.sum(q_sums, axis=1) - tl.sum(qx_sums, axis=1)
    return maximum, log_sum, q_nll


@triton.jit(do_not_specialize=["outer", "classes", "inner", "class_blocks", "ignore_index"])
def forward_kernel(
    tensors, outer: tl.int64, classes: tl.int64, inner: tl.int64, class_blocks: tl.int64,
    ignore_index: tl.int64, label_smoothing: tl.float64, z_loss: tl.float64,
    PROBABILITIES: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, PER_ROW: tl.constexpr,
    ROW_MAJOR: tl.constexpr, ALIGN: tl.constexpr, STAGES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Losses and statistics of a tile of rows (see rows.py).

    ``PROBABILITIES``: the target is a distribution for each row. ``SMOOTHING`` and ``Z_LOSS``:
    ``label_smoothing`` and ``z_loss`` are not 0. ``PER_ROW``: losses are not added up.
    """
    acc: tl.constexpr = tensors.stats.dtype.element_ty
    classes = classes * ALIGN if ROW_MAJOR else classes
    inner = inner if ROW_MAJOR else inner * ALIGN
    pid = tl.program_id(0).to(tl.int64)
    row, start, row_exists = locate_rows(pid, outer, classes, inner, ROW_MAJOR, BLOCK_R)
    num_classes = tl.full([], classes, acc)
    uniform = divide(tl.full([], label_smoothing, acc), num_classes)
    on_target = 1.0 - tl.full([], label_smoothing, acc)

    maximum, log_sum, q_nll = _sums_of_rows(
        tensors, start, row_exists, classes, inner, class_blocks, on_target, uniform,
        PROBABILITIES, SMOOTHING, ROW_MAJOR, STAGES, BLOCK_R, BLOCK_C,
    )  # fmt: skip
    if PROBABILITIES:
        # With no classes at all the sum is empty, while the statistics of the row are not finite.
        loss = tl.where(classes > 0, q_nll, 0.0)
        loss = add_z_loss(loss, z_loss, maximum, log_sum, Z_LOSS)
        # torch: the mean over no elements is NaN, here 0 / 0.
        count = tl.full([BLOCK_R], 1.0, acc) * tl.where(classes > 0, 1.0, 0.0).to(acc)
        counted = row_exists
    else:
        y = tl.load(tensors.target + row, mask=row_exists, other=ignore_index)
        counted = y != ignore_index
        in_range = (y >= 0) & (y < classes) & counted
        stride = 1 if ROW_MAJOR else inner
        x_y = tl.load(tensors.logits + start + y * stride, mask=in_range, other=0.0).to(acc)
        count = tl.full([BLOCK_R], 1.0, acc)
        if tensors.weight is not None:
            count = tl.load(tensors.weight + y, mask=in_range, other=0.0)
        loss = on_target * count * -log_probability(x_y, maximum, log_sum)
        if SMOOTHING:
            loss += uniform * q_nll
        loss = add_z_loss(loss, z_loss, maximum, log_sum, Z_LOSS)
        # A class index out of range poisons its row instead of pointing outside.
        loss = tl.where(in_range, loss, float("nan"))
    if tensors.sample_weight is not None:
        loss = loss * tl.load(tensors.sample_weight + row, mask=row_exists, other=0.0)
    # Select, never multiply: an ignored row may hold anything.
    loss = tl.where(counted, loss, 0.0)
    count = tl.where(counted, count, 0.0)

    tl.store(tensors.stats + row, maximum, mask=row_exists)
    tl.store(tensors.stats + outer * inner + row, log_sum, mask=row_exists)
    if PER_ROW:
        tl.store(tensors.loss + row, loss, mask=row_exists)
    else:
        tl.store(tensors.partials + pid, tl.sum(loss, axis=0))
        tl.store(tensors.partials + tl.num_programs(0) + pid, tl.sum(count, axis=0))
    if tensors.divisor is not None:
        tl.store(tensors.divisor, 1.0, mask=pid == 0)


@triton.jit
def _sum_of_q(
    tensors, start, row_exists, classes, inner, blocks, on_target, uniform,
    SMOOTHING: tl.constexpr, ROW_MAJOR: tl.constexpr, STAGES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Each row's sum of what its classes' losses are weighted by, the target being probabilities."""
    acc: tl.constexpr = tensors.stats.dtype.element_ty
    sums = tl.zeros([BLOCK_R, BLOCK_C], acc)
    for block in tl.range(0, blocks, num_stages=STAGES):
        first = block * BLOCK_C
        c, offset, class_exists = locate_classes(first, classes, inner, ROW_MAJOR, BLOCK_C)
        mask = row_exists[:, None] & class_exists[None, :]
        t = tl.load(tensors.target + start[:, None] + offset[None, :], mask=mask, other=0.0).to(acc)
        q = weighted(smoothed(t, on_target, uniform, SMOOTHING), tensors.weight, c, class_exists)
        sums += tl.where(mask, q, 0.0)
    return tl.sum(sums, axis=1)


@triton.jit(do_not_specialize=["outer", "classes", "inner", "splits", "blocks", "ignore_index"])
def backward_kernel(
    tensors, outer: tl.int64, classes: tl.int64, inner: tl.int64, splits: tl.int64, blocks: tl.int64,
    ignore_index: tl.int64, label_smoothing: tl.float64, z_loss: tl.float64,
    PROBABILITIES: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, PER_ROW: tl.constexpr,
    ROW_MAJOR: tl.constexpr, ALIGN: tl.constexpr, STAGES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of ``blocks`` blocks of classes, one of ``splits`` shares of a tile of rows (see rows.py).

    ``PROBABILITIES``: the target is a distribution for each row. ``SMOOTHING`` and ``Z_LOSS``:
    ``label_smoothing`` and ``z_loss`` are not 0. ``PER_ROW``: there is a gradient for each row's loss.
    """
    storage: tl.constexpr = tensors.logits.dtype.element_ty
    acc: tl.constexpr = tensors.stats.dtype.element_ty
    classes = classes * ALIGN if ROW_MAJOR else classes
    inner = inner if ROW_MAJOR else inner * ALIGN
    pid = tl.program_id(0).to(tl.int64)
    tile = pid // splits
    begin = (pid - tile * splits) * blocks * BLOCK_C
    row, start, row_exists = locate_rows(tile, outer, classes, inner, ROW_MAJOR, BLOCK_R)
    num_classes = tl.full([], classes, acc)
    uniform = divide(tl.full([], label_smoothing, acc), num_classes)
    on_target = 1.0 - tl.full([], label_smoothing, acc)
    maximum = tl.load(tensors.stats + row, mask=row_exists, other=0.0)
    log_sum = tl.load(tensors.stats + outer * inner + row, mask=row_exists, other=0.0)

    # The row's gradient is  on_probability * p_c - scale * q_c.
    if PER_ROW:
        scale = tl.load(tensors.grad_loss + row, mask=row_exists, other=0.0)
    else:
        scale = tl.load(tensors.grad_loss)
    scale = divide(scale + tl.zeros([BLOCK_R], acc), tl.load(tensors.divisor) + tl.zeros([BLOCK_R], acc))
    if tensors.sample_weight is not None:
        scale = scale * tl.load(tensors.sample_weight + row, mask=row_exists, other=0.0)
    if PROBABILITIES:
        sum_q = _sum_of_q(
            tensors, start, row_exists, classes, inner, blocks, on_target, uniform,
            SMOOTHING, ROW_MAJOR, STAGES, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    else:
        y = tl.load(tensors.target + row, mask=row_exists, other=ignore_index)
        counted = y != ignore_index
        in_range = (y >= 0) & (y < classes) & counted
        target_q = on_target + tl.zeros([BLOCK_R], acc)
        if tensors.weight is not None:
            target_q = target_q * tl.load(tensors.weight + y, mask=in_range, other=0.0)
        sum_q = target_q
        if SMOOTHING:
            sum_q += uniform * (tl.load(tensors.weight_sum) if tensors.weight is not None else num_classes)
    on_probability = scale * sum_q
    if Z_LOSS:
        on_probability += scale * (2.0 * tl.full([], z_loss, acc)) * (maximum + log_sum)
    upstream = tl.zeros([BLOCK_R], acc)
    if tensors.grad_lse is not None:
        upstream = tl.load(tensors.grad_lse + row, mask=row_exists, other=0.0)
    if PROBABILITIES:
        on_probability += upstream
        used = row_exists
    else:
        on_probability = tl.where(counted, on_probability, 0.0) + upstream
        on_probability = tl.where(counted & (~in_range), float("nan"), on_probability)
        scale = tl.where(counted, scale, 0.0)
        # An ignored row without a gradient through lse is 0, whatever it holds.
        used = row_exists & (counted | (on_probability != 0.0))
    # It need not be read, unless neighbouring rows are read in one vector.
    read = used if ROW_MAJOR else row_exists

    for block in tl.range(0, blocks, num_stages=STAGES):
        first = begin + block * BLOCK_C
        c, offset, class_exists = locate_classes(first, classes, inner, ROW_MAJOR, BLOCK_C)
        offsets = start[:, None] + offset[None, :]
        mask = read[:, None] & class_exists[None, :]
        x = tl.load(tensors.logits + offsets, mask=mask, other=0.0).to(acc)
        p = exp(log_probability(x, maximum[:, None], log_sum[:, None]), storage)
        dx = on_probability[:, None] * p
        if PROBABILITIES:
            t = tl.load(tensors.target + offsets, mask=mask, other=0.0).to(acc)
            q = weighted(smoothed(t, on_target, uniform, SMOOTHING), tensors.weight, c, class_exists)
        else:
            q = tl.where(c[None, :] == y[:, None], target_q[:, None], 0.0)
            if SMOOTHING:
                q += weighted(uniform + tl.zeros([1, BLOCK_C], acc), tensors.weight, c, class_exists)
        dx = tl.where(used[:, None], dx - scale[:, None] * q, 0.0)
        # Reading came first, so grad_logits may be the logits themselves.
        stored = row_exists[:, None] & class_exists[None, :]
        tl.store(tensors.grad_logits + offsets, dx.to(storage), mask=stored)
