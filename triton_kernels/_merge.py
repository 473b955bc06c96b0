"""Partial sums [parts, columns], added up in an order that only depends on their number."""

import torch
import triton
import triton.language as tl

from ._common import cdiv, launch


def merge_parts(partials: torch.Tensor, total: torch.Tensor) -> None:
    """Overwrite ``total``, of as many elements as ``partials`` [parts, columns] has columns."""
    parts, columns = partials.shape
    block_p = 32 if parts > 8 else 8
    launch(
        _merge_kernel, cdiv(columns, 1024 // block_p), partials.device, partials, total, parts, columns,
        BLOCK_P=block_p, BLOCK_C=1024 // block_p, num_warps=4,
    )  # fmt: skip


@triton.jit
def _merge_kernel(
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
