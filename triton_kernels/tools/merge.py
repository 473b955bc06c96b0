"""Partial sums [parts, columns], added up in an order that depends on their number alone."""

import torch
import triton
import triton.language as tl

from .launch import cdiv, launch
from .math import divide

_SIDE = 32  # parts, and columns, that a program adds up at once


def merge_parts(partials: torch.Tensor, total: torch.Tensor) -> None:
    """Overwrite ``total``, of as many elements as ``partials`` [parts, columns] has columns."""
    parts, columns = partials.shape
    launch(
        _merge_parts_kernel, cdiv(columns, _SIDE), partials.device, partials, total, parts, columns,
        BLOCK_P=_SIDE, BLOCK_C=_SIDE, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["parts"])
def _merge_parts_kernel(
    partial_ptr, total_ptr, parts: tl.int64, columns: tl.int64, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    column = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    sums = tl.zeros([BLOCK_P, BLOCK_C], partial_ptr.dtype.element_ty)
    for first in tl.range(0, parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        mask = (part < parts)[:, None] & (column < columns)[None, :]
        sums += tl.load(partial_ptr + part[:, None] * columns + column[None, :], mask=mask, other=0.0)
    total = tl.sum(sums, axis=0).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + column, total, mask=column < columns)


_MERGE_BLOCK = 1024
_MERGE_IN_ONE_PROGRAM = 16 * _MERGE_BLOCK


def reduce_partials(
    partials: torch.Tensor,
    total: torch.Tensor | None,
    total_weight: torch.Tensor | None,
    *,
    mean: bool = False,
) -> None:
    """Sum the rows of ``partials`` [1 or 2, P] into the scalars ``total`` and ``total_weight``.

    ``mean`` divides ``total`` by the second sum. An output that is None is not written.
    """
    kinds, count = partials.shape
    while count > _MERGE_IN_ONE_PROGRAM:
        blocks = cdiv(count, _MERGE_BLOCK)
        merged = partials.new_empty((kinds, blocks))
        launch(
            _merge_sums_kernel, kinds * blocks, partials.device, partials, merged, count, blocks,
            BLOCK=_MERGE_BLOCK, num_warps=4,
        )  # fmt: skip
        partials, count = merged, blocks
    launch(
        _finish_kernel, 1, partials.device, partials, total, total_weight, count,
        MEAN=mean, BLOCK=_MERGE_BLOCK, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["count", "blocks"])
def _merge_sums_kernel(partials, merged, count: tl.int64, blocks: tl.int64, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    kind = pid // blocks
    i = (pid - kind * blocks) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(partials + kind * count + i, mask=i < count, other=0.0)
    tl.store(merged + pid, tl.sum(values, axis=0))


@triton.jit(do_not_specialize=["count"])
def _finish_kernel(partials, total, total_weight, count: tl.int64, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    if total_weight is not None:
        weight_sum = _sum_all(partials + count, count, BLOCK)
        tl.store(total_weight, weight_sum)
    if total is not None:
        value = _sum_all(partials, count, BLOCK)
        if MEAN:
            value = divide(value, weight_sum)
        tl.store(total, value)


@triton.jit
def _sum_all(values, count, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=values.dtype.element_ty)
    for first in tl.range(0, count, BLOCK):
        i = first + lane
        total += tl.load(values + i, mask=i < count, other=0.0)
    return tl.sum(total, axis=0)
