"""softmax and log_softmax over any dimension; formulas as in csrc/math/softmax.h."""

from typing import Any

import torch
import triton
import triton.language as tl

from pyops._library import implement

from ..tools.checks import check_dense, check_floating
from ..tools.launch import launch
from ..tools.math import INFINITY, divide, exp
from .online_softmax import finish_log_sum, log_probability, shift_of
from .rows import locate_classes, locate_rows, row_tiles


def _reduced_shape(tensor: torch.Tensor, dim: int, op: str) -> tuple[int, int, int]:
    """``tensor`` as [outer, classes, inner] with ``dim`` in the middle."""
    rank = max(tensor.dim(), 1)
    if not -rank <= dim < rank:
        raise RuntimeError(f"{op}: dim must be in [{-rank}, {rank - 1}], got {dim}")
    shape = tuple(tensor.shape) or (1,)
    dim %= rank
    outer = inner = 1
    for size in shape[:dim]:
        outer *= size
    for size in shape[dim + 1 :]:
        inner *= size
    return outer, shape[dim], inner


def _tiles(
    outer: int, classes: int, inner: int, dtype: torch.dtype
) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """Number of programs, and the sizes and constants that the kernel gets."""
    # A row that fits one tile is read from memory once and stays in registers.
    max_classes = 8192 if dtype == torch.float64 else 16384
    looped = max_classes // (8 if dtype == torch.float64 else 4)  # larger float64 tiles spill
    tiles = row_tiles(classes, inner, max_classes if classes <= max_classes else looped)
    sizes = (outer, tiles.classes, tiles.inner, tiles.class_blocks)
    return tiles.programs(outer), sizes, {"ONE_TILE": tiles.class_blocks <= 1, **tiles.meta}


@implement("pyops_triton", "softmax_forward")
def softmax_forward(input: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    """Softmax of ``input`` (or its logarithm) along ``dim``, in ``input``'s shape and dtype."""
    op = "softmax_forward"
    check_floating(input, op, "input")
    check_dense(input, op, "input", like=input, dtype=input.dtype)
    shape = _reduced_shape(input, dim, op)
    output = torch.empty_like(input)
    if input.numel() > 0:
        programs, sizes, meta = _tiles(*shape, input.dtype)
        launch(_forward_kernel, programs, input.device, input, output, *sizes, LOG=log, **meta)
    return output


@implement("pyops_triton", "softmax_backward")
def softmax_backward(grad_output: torch.Tensor, output: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    """Gradient of softmax_forward's input, from its ``output`` and the gradient of that."""
    op = "softmax_backward"
    check_floating(output, op, "output")
    check_dense(output, op, "output", like=output, dtype=output.dtype)
    check_dense(grad_output, op, "grad_output", like=output, dtype=output.dtype, shape=output.shape)
    shape = _reduced_shape(output, dim, op)
    grad_input = torch.empty_like(output)
    if output.numel() > 0:
        programs, sizes, meta = _tiles(*shape, output.dtype)
        launch(
            _backward_kernel, programs, output.device, grad_output, output, grad_input, *sizes,
            LOG=log, **meta,
        )  # fmt: skip
    return grad_input


@triton.jit(do_not_specialize=["outer", "classes", "inner", "class_blocks"])
def _forward_kernel(
    x_ptr, y_ptr, outer: tl.int64, classes: tl.int64, inner: tl.int64, class_blocks: tl.int64,
    LOG: tl.constexpr, ONE_TILE: tl.constexpr, ROW_MAJOR: tl.constexpr,
    ALIGN: tl.constexpr, STAGES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = x_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    classes = classes * ALIGN if ROW_MAJOR else classes
    inner = inner if ROW_MAJOR else inner * ALIGN
    _row, start, row_exists = locate_rows(tl.program_id(0), outer, classes, inner, ROW_MAJOR, BLOCK_R)
    x_rows = x_ptr + start[:, None]
    y_rows = y_ptr + start[:, None]
    if ONE_TILE:
        _c, offset, class_exists = locate_classes(0, classes, inner, ROW_MAJOR, BLOCK_C)
        mask = row_exists[:, None] & class_exists[None, :]
        x = tl.load(x_rows + offset[None, :], mask=mask, other=-INFINITY).to(acc)
        maximum = tl.max(x, axis=1)
        # Not shift_of(maximum): the NaN that a row of only -inf then gives is torch's result.
        centered = x - maximum[:, None]
        e = exp(centered, storage)
        total = tl.sum(e, axis=1)
        y = centered - tl.log(total)[:, None] if LOG else e * divide(1.0, total)[:, None]
        tl.store(y_rows + offset[None, :], y.to(storage), mask=mask)
    else:
        maximum = tl.full([BLOCK_R], -INFINITY, acc)
        sums = tl.zeros([BLOCK_R, BLOCK_C], acc)
        for block in tl.range(0, class_blocks, num_stages=STAGES):
            first = block * BLOCK_C
            _c, offset, class_exists = locate_classes(first, classes, inner, ROW_MAJOR, BLOCK_C)
            mask = row_exists[:, None] & class_exists[None, :]
            x = tl.load(x_rows + offset[None, :], mask=mask, other=-INFINITY).to(acc)
            larger = tl.maximum(maximum, tl.max(x, axis=1))
            shift = shift_of(larger)
            decay = exp(maximum - shift, storage)
            sums = sums * decay[:, None] + exp(x - shift[:, None], storage)
            maximum = larger
        total = tl.sum(sums, axis=1)
        log_sum = finish_log_sum(maximum, total)
        scale = divide(1.0, total)
        for block in tl.range(0, class_blocks, num_stages=STAGES):
            first = block * BLOCK_C
            _c, offset, class_exists = locate_classes(first, classes, inner, ROW_MAJOR, BLOCK_C)
            mask = row_exists[:, None] & class_exists[None, :]
            x = tl.load(x_rows + offset[None, :], mask=mask, other=0.0).to(acc)
            if LOG:
                y = log_probability(x, maximum[:, None], log_sum[:, None])
            else:
                y = exp(x - maximum[:, None], storage) * scale[:, None]
            tl.store(y_rows + offset[None, :], y.to(storage), mask=mask)


@triton.jit
def _softmax_gradient(y, grad, row_sum, storage: tl.constexpr, LOG: tl.constexpr):
    """``row_sum`` is sum(grad) for log_softmax and sum(grad * y) for softmax."""
    if LOG:
        return grad - exp(y, storage) * row_sum[:, None]
    else:
        return y * (grad - row_sum[:, None])


@triton.jit(do_not_specialize=["outer", "classes", "inner", "class_blocks"])
def _backward_kernel(
    grad_ptr, y_ptr, dx_ptr, outer: tl.int64, classes: tl.int64, inner: tl.int64, class_blocks: tl.int64,
    LOG: tl.constexpr, ONE_TILE: tl.constexpr, ROW_MAJOR: tl.constexpr,
    ALIGN: tl.constexpr, STAGES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = y_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    classes = classes * ALIGN if ROW_MAJOR else classes
    inner = inner if ROW_MAJOR else inner * ALIGN
    _row, start, row_exists = locate_rows(tl.program_id(0), outer, classes, inner, ROW_MAJOR, BLOCK_R)
    grad_rows = grad_ptr + start[:, None]
    y_rows = y_ptr + start[:, None]
    dx_rows = dx_ptr + start[:, None]
    if ONE_TILE:
        _c, offset, class_exists = locate_classes(0, classes, inner, ROW_MAJOR, BLOCK_C)
        mask = row_exists[:, None] & class_exists[None, :]
        y = tl.load(y_rows + offset[None, :], mask=mask, other=0.0).to(acc)
        grad = tl.load(grad_rows + offset[None, :], mask=mask, other=0.0).to(acc)
        row_sum = tl.sum(grad if LOG else grad * y, axis=1)
        dx = _softmax_gradient(y, grad, row_sum, storage, LOG)
        tl.store(dx_rows + offset[None, :], dx.to(storage), mask=mask)
    else:
        sums = tl.zeros([BLOCK_R, BLOCK_C], acc)
        for block in tl.range(0, class_blocks, num_stages=STAGES):
            first = block * BLOCK_C
            _c, offset, class_exists = locate_classes(first, classes, inner, ROW_MAJOR, BLOCK_C)
            mask = row_exists[:, None] & class_exists[None, :]
            grad = tl.load(grad_rows + offset[None, :], mask=mask, other=0.0).to(acc)
            if LOG:
                sums += grad
            else:
                sums += grad * tl.load(y_rows + offset[None, :], mask=mask, other=0.0).to(acc)
        row_sum = tl.sum(sums, axis=1)
        for block in tl.range(0, class_blocks, num_stages=STAGES):
            first = block * BLOCK_C
            _c, offset, class_exists = locate_classes(first, classes, inner, ROW_MAJOR, BLOCK_C)
            mask = row_exists[:, None] & class_exists[None, :]
            y = tl.load(y_rows + offset[None, :], mask=mask, other=0.0).to(acc)
            grad = tl.load(grad_rows + offset[None, :], mask=mask, other=0.0).to(acc)
            dx = _softmax_gradient(y, grad, row_sum, storage, LOG)
            tl.store(dx_rows + offset[None, :], dx.to(storage), mask=mask)
