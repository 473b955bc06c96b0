"""embedding: a gather of rows; its gradient sums sorted positions in chunks, as csrc/cuda/embedding.cu."""

import math
from typing import Any

import torch
import triton
import triton.language as tl

from pyops._library import implement

from .tools.checks import acc_dtype, check_dense, check_floating
from .tools.launch import cdiv, launch, next_power_of_2

_TILE = 4096  # elements of a gather's tile
_CHUNK = 32  # sorted positions that one program sums
_NO_PADDING = -1


def _check_indices(indices: torch.Tensor, op: str, like: torch.Tensor) -> None:
    if indices.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"{op}: indices must be int64 or int32, got {indices.dtype}")
    check_dense(indices, op, "indices", like=like, dtype=indices.dtype)


def _check_table(weight: torch.Tensor, indices: torch.Tensor, op: str) -> None:
    if weight.dim() != 2:
        raise RuntimeError(f"{op}: weight must have 2 dimensions, got shape {tuple(weight.shape)}")
    check_floating(weight, op, "weight")
    _check_indices(indices, op, weight)


def _tile(dim: int, positions: int) -> tuple[int, int, dict[str, Any]]:
    """Columns' tiles, rows' tiles and constants of a kernel over [positions, dim]."""
    block_d = min(max(next_power_of_2(dim), 1), 1024)
    block_r = min(max(_TILE // block_d, 1), 64)
    return cdiv(dim, block_d), cdiv(positions, block_r), {"BLOCK_R": block_r, "BLOCK_D": block_d}


@implement("pyops_triton", "embedding_forward")
def embedding_forward(weight: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows of ``weight`` [V, D], of any strides, by ``indices`` [*]; NaN for those that do not exist."""
    _check_table(weight, indices, "embedding_forward")
    rows, dim = weight.shape
    output = torch.empty((*indices.shape, dim), dtype=weight.dtype, device=weight.device)
    if output.numel() > 0:
        tiles, row_tiles, meta = _tile(dim, indices.numel())
        launch(
            _gather_kernel, tiles * row_tiles, weight.device, weight, indices, output, indices.numel(), rows,
            dim, tiles, weight.stride(0), weight.stride(1), **meta, num_warps=4,
        )  # fmt: skip
    return output


@triton.jit(do_not_specialize=["positions"])
def _gather_kernel(
    weight, indices, output, positions: tl.int64, rows: tl.int64, dim, tiles, row_stride, column_stride,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i = (pid // tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = (pid % tiles) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.load(indices + i, mask=i < positions, other=-1).to(tl.int64)
    # An index out of range addresses nothing: its row is NaN.
    valid = (row >= 0) & (row < rows)
    offset = row[:, None] * row_stride + c[None, :] * column_stride
    inside = (c < dim)[None, :]
    values = tl.load(weight + offset, mask=valid[:, None] & inside, other=float("nan"))
    tl.store(output + i[:, None] * dim + c[None, :], values, mask=(i < positions)[:, None] & inside)


# ------------------------------------------------------------------------------------------ sorted positions


def _sort_positions(indices: torch.Tensor, rows: int, padding_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The row of each position in ascending order, and the positions; ``rows`` where nothing is to do."""
    narrow = rows < 2**31 - 1  # half as many passes of the sort
    keys = torch.empty(indices.numel(), dtype=torch.int32 if narrow else torch.int64, device=indices.device)
    block = 1024
    launch(
        _keys_kernel, cdiv(keys.numel(), block), keys.device, indices, keys, keys.numel(), rows, padding_idx,
        BLOCK=block, num_warps=4,
    )  # fmt: skip
    values, order = torch.sort(keys, stable=True)
    return values, order


@triton.jit(do_not_specialize=["count"])
def _keys_kernel(indices, keys, count: tl.int64, rows: tl.int64, padding_idx: tl.int64, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(indices + i, mask=i < count, other=-1).to(tl.int64)
    counted = (row >= 0) & (row < rows) & (row != padding_idx)
    tl.store(keys + i, tl.where(counted, row, rows).to(keys.dtype.element_ty), mask=i < count)


# -------------------------------------------------------------------------------------------------- backward


@implement("pyops_triton", "embedding_backward")
def embedding_backward(
    grad_output: torch.Tensor,
    indices: torch.Tensor,
    num_weights: int,
    padding_idx: int,
    scale_grad_by_freq: bool,
) -> torch.Tensor:
    """Gradient [num_weights, D] of embedding_forward's weight; indices out of range add nothing."""
    op = "embedding_backward"
    if num_weights < 0:
        raise RuntimeError(f"{op}: num_weights must not be negative, got {num_weights}")
    if grad_output.dim() == 0:
        raise RuntimeError(f"{op}: grad_output must have at least one dimension, got a 0-d tensor")
    check_floating(grad_output, op, "grad_output")
    _check_indices(indices, op, grad_output)
    dim, dtype, device = grad_output.shape[-1], grad_output.dtype, grad_output.device
    check_dense(grad_output, op, "grad_output", like=grad_output, dtype=dtype, shape=(*indices.shape, dim))
    grad_weight = torch.zeros((num_weights, dim), dtype=dtype, device=device)
    if grad_weight.numel() == 0 or indices.numel() == 0:
        return grad_weight
    all_keys, order = _sort_positions(indices, num_weights, padding_idx)
    keys, source, count = all_keys, grad_output, all_keys.numel()
    block = min(next_power_of_2(dim), 256)
    tiles = cdiv(dim, block)
    # Each pass has a sixteenth of the summands of the one before.
    while True:
        chunks = cdiv(count, _CHUNK)
        next_keys = torch.empty(2 * chunks, dtype=torch.int64, device=device) if chunks > 1 else None
        sums = torch.empty((2 * chunks, dim), dtype=acc_dtype(dtype), device=device) if chunks > 1 else None
        launch(
            _sum_rows_kernel, chunks * tiles, device, keys, order if keys is all_keys else None, source,
            next_keys, sums, grad_weight, all_keys if scale_grad_by_freq else None, count, num_weights,
            dim, tiles, all_keys.numel(), all_keys.numel().bit_length(), CHUNK=_CHUNK, BLOCK=block,
            num_warps=1 if block <= 128 else 2,
        )  # fmt: skip
        if next_keys is None or sums is None:
            return grad_weight
        keys, source, count = next_keys, sums, 2 * chunks


@triton.jit(noinline=True)
def _keys_before(all_keys, key, count, steps):
    """How many of the sorted keys are smaller than ``key``: a binary search."""
    low = key * 0
    high = low + count
    for _ in tl.range(0, steps):
        middle = (low + high) // 2
        smaller = tl.load(all_keys + middle, mask=middle < count, other=0).to(tl.int64) < key
        searching = low < high
        low, high = (
            tl.where(searching & smaller, middle + 1, low),
            tl.where(searching & (smaller == 0), middle, high),
        )
    return low


@triton.jit
def _finish(
    key, total, began_before, goes_on, chunk, columns, inside, partial_keys, partials, grad, all_keys,
    rows, dim, all_count, steps,
):  # fmt: skip
    """Write the sum of a row: its gradient when it is complete, else the chunk's partial sums of it."""
    counted = key < rows
    complete = counted & (began_before == 0) & (goes_on == 0)
    if complete:
        if all_keys is not None:
            count = _keys_before(all_keys, key + 1, all_count, steps)
            count -= _keys_before(all_keys, key, all_count, steps)
            total = total / count.to(total.dtype)
        tl.store(grad + key * dim + columns, total.to(grad.dtype.element_ty), mask=inside)
    if partials is not None:
        slot = 2 * chunk
        first = columns == 0
        if counted & began_before:
            tl.store(partials + slot * dim + columns, total, mask=inside)
            tl.store(partial_keys + slot + columns * 0, key + columns * 0, mask=first)
        if counted & goes_on:
            # What began before is in the first already: zeros keep the row's partial sums neighbours.
            tl.store(partials + (slot + 1) * dim + columns, tl.where(began_before, 0.0, total), mask=inside)
            tl.store(partial_keys + slot + 1 + columns * 0, key + columns * 0, mask=first)


@triton.jit(do_not_specialize=["count", "all_count", "steps"])
def _sum_rows_kernel(
    keys, order, source, partial_keys, partials, grad, all_keys,
    count: tl.int64, rows: tl.int64, dim: tl.int64, tiles: tl.int64, all_count: tl.int64, steps,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Partial sums as in csrc/cuda/embedding.cu (struct Partials)."""
    acc: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    pid = tl.program_id(0).to(tl.int64)
    chunk = pid // tiles
    columns = (pid - chunk * tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < dim
    first = chunk * CHUNK
    if partials is not None:
        unused = tl.where(columns == 0, rows, rows)
        tl.store(partial_keys + 2 * chunk + columns * 0, unused, mask=columns == 0)
        tl.store(partial_keys + 2 * chunk + 1 + columns * 0, unused, mask=columns == 0)
    key = tl.load(keys + first).to(tl.int64)
    began_before = (first > 0) & (tl.load(keys + first - 1, mask=first > 0, other=0).to(tl.int64) == key)
    total = tl.zeros([BLOCK], acc)
    for k in tl.range(0, CHUNK):
        i = first + k
        if i < count:
            next_key = tl.load(keys + i).to(tl.int64)
            if next_key != key:
                _finish(
                    key, total, began_before, key < 0, chunk, columns, inside, partial_keys, partials, grad,
                    all_keys, rows, dim, all_count, steps,
                )  # fmt: skip
                key = next_key
                began_before = key < 0
                total = tl.zeros([BLOCK], acc)
            if key < rows:
                row = i if order is None else tl.load(order + i)
                total += tl.load(source + row * dim + columns, mask=inside, other=0.0).to(acc)
    last = first + CHUNK
    goes_on = (last < count) & (tl.load(keys + last, mask=last < count, other=-1).to(tl.int64) == key)
    _finish(
        key, total, began_before, goes_on, chunk, columns, inside, partial_keys, partials, grad, all_keys,
        rows, dim, all_count, steps,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- renormalisation

_ORDERS = {2.0: "two", 1.0: "one", 0.0: "zero", math.inf: "largest", -math.inf: "smallest"}


@implement("pyops_triton", "embedding_renorm_")
def embedding_renorm_(weight: torch.Tensor, indices: torch.Tensor, max_norm: float, norm_type: float) -> None:
    """Shorten to ``max_norm`` the rows of ``weight`` that ``indices`` name and that are longer."""
    op = "embedding_renorm_"
    _check_table(weight, indices, op)
    rows, dim = weight.shape
    row_stride, column_stride = weight.stride()
    if not (
        rows <= 1
        or dim == 0
        or (dim == 1 and row_stride >= 1)
        or (column_stride >= 1 and row_stride >= column_stride * dim)
        or (row_stride >= 1 and column_stride >= row_stride * rows)
    ):
        raise RuntimeError(
            f"{op}: weight must not have elements that share memory, got strides {weight.stride()}"
        )
    if indices.numel() == 0 or dim == 0:
        return
    keys, _ = _sort_positions(indices, rows, _NO_PADDING)
    block = min(next_power_of_2(dim), 1024)
    launch(
        _renorm_kernel, keys.numel(), weight.device, weight, keys, rows, dim, row_stride, column_stride,
        max_norm, norm_type, ORDER=_ORDERS.get(norm_type, "other"), BLOCK=block, num_warps=4,
    )  # fmt: skip


@triton.jit
def _norm_term(x, norm_type, ORDER: tl.constexpr):
    """As the norms of csrc/math/embedding.h; other orders in float64, where exp and log lose nothing."""
    if ORDER == "two":
        return x * x
    elif ORDER == "zero":
        return tl.where(x != 0.0, 1.0, 0.0).to(x.dtype)
    elif ORDER == "other":
        return tl.exp(norm_type * tl.log(tl.abs(x).to(tl.float64)))
    else:
        return tl.abs(x)


@triton.jit
def _renorm_kernel(
    weight, keys, rows: tl.int64, dim, row_stride: tl.int64, column_stride: tl.int64,
    max_norm: tl.float64, norm_type: tl.float64, ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = weight.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    i = tl.program_id(0).to(tl.int64)
    key = tl.load(keys + i).to(tl.int64)
    before = tl.load(keys + i - 1, mask=i > 0, other=-1).to(tl.int64)
    # The first position of a row works on it.
    if (key < rows) & (key != before):
        start = weight + key * row_stride
        lane = tl.arange(0, BLOCK)
        extremum: tl.constexpr = ORDER == "largest" or ORDER == "smallest"
        part = tl.full(
            [BLOCK], float("inf") if ORDER == "smallest" else 0.0, tl.float64 if ORDER == "other" else acc
        )
        for first in tl.range(0, dim, BLOCK):
            c = first + lane
            x = tl.load(start + c * column_stride, mask=c < dim, other=0.0).to(acc)
            term = _norm_term(x, norm_type, ORDER)
            if ORDER == "largest":
                part = tl.where(c < dim, tl.maximum(part, term, propagate_nan=tl.PropagateNan.ALL), part)
            elif ORDER == "smallest":
                part = tl.where(c < dim, tl.minimum(part, term, propagate_nan=tl.PropagateNan.ALL), part)
            else:
                part = tl.where(c < dim, part + term, part)
        if extremum:
            poisoned = tl.sum((part != part).to(tl.int32), axis=0) > 0
            norm = tl.max(part, axis=0) if ORDER == "largest" else tl.min(part, axis=0)
            norm = tl.where(poisoned, float("nan"), norm).to(tl.float64)
        else:
            norm = tl.sum(part, axis=0).to(tl.float64)
            if ORDER == "two":
                norm = tl.sqrt(norm)
            elif ORDER == "other":
                norm = tl.exp(tl.log(norm) / norm_type)
        if norm > max_norm:
            factor = (max_norm / (norm + 1e-7)).to(acc)
            for first in tl.range(0, dim, BLOCK):
                c = first + lane
                x = tl.load(start + c * column_stride, mask=c < dim, other=0.0).to(acc)
                tl.store(start + c * column_stride, (x * factor).to(storage), mask=c < dim)
