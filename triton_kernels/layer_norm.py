"""Layer and group normalisation; formulas as in csrc/math/layer_norm.h.

A program takes a few rows that fit a tile, which it reads once, or walks over one row. The parameters'
gradients are sums over rows: a program sums a slice of rows (channels of one element) or a channel's run of
neighbours, and the sums are added up in order.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from pyops._library import implement
from pyops.kinds import Activation

from .tools.activation import activate, check_activation, derive_from_input
from .tools.checks import acc_dtype, check_dense, check_floating
from .tools.launch import cdiv, launch, next_power_of_2
from .tools.math import divide
from .tools.merge import merge_parts

_TILE = 2048  # elements of the rows that a program takes together
_LONGEST = 16384  # elements of a row that fit a tile; half as many in float64
_LOOPED = 4096  # of a longer row at a time
_SUM_ROWS = 32  # rows that a program sums, at least
_MOST_SLICES = 128
_COLUMNS = 128  # whose sums over rows a program forms


class _Rows(NamedTuple):
    """The input as ``rows`` of ``size`` elements, in channels of ``inner`` neighbours.

    The channels of ``groups`` rows, one after the other, have a weight and a bias each.
    """

    rows: int
    size: int
    inner: int
    groups: int

    @property
    def parameters(self) -> int:
        return self.groups * self.size // self.inner


def _check(
    op: str,
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    size: int,
    inner: int,
    groups: int,
    activation: Activation,
) -> _Rows:
    check_floating(input, op, "input")
    check_dense(input, op, "input", like=input, dtype=input.dtype)
    if size <= 0 or input.numel() % size:
        raise RuntimeError(f"{op}: size must divide the input's {input.numel()} elements, got {size}")
    if inner <= 0 or size % inner:
        raise RuntimeError(f"{op}: inner must divide size, {size}, got {inner}")
    rows = input.numel() // size
    if groups <= 0 or rows % groups:
        raise RuntimeError(f"{op}: groups must divide the number of rows, {rows}, got {groups}")
    shape = _Rows(rows, size, inner, groups)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            check_dense(tensor, op, name, like=input, dtype=acc_dtype(input.dtype), shape=(shape.parameters,))
    check_activation(activation, op)
    return shape


def _tiles(s: _Rows, dtype: torch.dtype) -> tuple[int, dict[str, Any]]:
    """How many programs there are, and the constants of their tiles."""
    longest = _LONGEST // (2 if dtype is torch.float64 else 1)
    one_tile = s.size <= longest
    columns = next_power_of_2(s.size) if one_tile else _LOOPED
    rows = max(1, min(_TILE // columns, 32)) if one_tile else 1
    meta = {
        "ONE_TILE": one_tile,
        "BLOCK_R": rows,
        "BLOCK_C": columns,
        "num_warps": min(16, max(4, next_power_of_2(rows * columns // 512))),
    }
    return cdiv(s.rows, rows), meta


@implement("pyops_triton", "layer_norm_forward")
def layer_norm_forward(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    size: int,
    inner: int,
    groups: int,
    eps: float,
    kind: int,
    alpha: float,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The normalised rows after the activation, and each row's mean and reciprocal deviation."""
    activation = Activation(kind, alpha, beta)
    s = _check("layer_norm_forward", input, weight, bias, size, inner, groups, activation)
    output = torch.empty_like(input)
    mean = torch.empty(s.rows, dtype=acc_dtype(input.dtype), device=input.device)
    rstd = torch.empty_like(mean)
    if s.rows > 0:
        programs, meta = _tiles(s, input.dtype)
        launch(
            _forward_kernel, programs, input.device, input, weight, bias, output, mean, rstd, *s,
            EPS=eps, ACTIVATION=activation, **meta,
        )  # fmt: skip
    return output, mean, rstd


@implement("pyops_triton", "layer_norm_backward")
def layer_norm_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    size: int,
    inner: int,
    groups: int,
    kind: int,
    alpha: float,
    beta: float,
    needs_parameters: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of ``input``, and of ``weight`` and ``bias`` if they are needed."""
    op = "layer_norm_backward"
    activation = Activation(kind, alpha, beta)
    s = _check(op, input, weight, bias, size, inner, groups, activation)
    check_dense(grad_output, op, "grad_output", like=input, dtype=input.dtype, shape=input.shape)
    acc = acc_dtype(input.dtype)
    check_dense(mean, op, "mean", like=input, dtype=acc, shape=(s.rows,))
    check_dense(rstd, op, "rstd", like=input, dtype=acc, shape=(s.rows,))
    grad_input = torch.empty_like(input)
    tensors = (grad_output, input, weight, bias, mean, rstd)
    if s.rows > 0:
        programs, meta = _tiles(s, input.dtype)
        launch(
            _backward_kernel, programs, input.device, *tensors, grad_input, *s, ACTIVATION=activation, **meta
        )
    if not needs_parameters:
        return grad_input, mean.new_empty(0), mean.new_empty(0)
    if s.rows == 0:
        return grad_input, mean.new_zeros(s.parameters), mean.new_zeros(s.parameters)
    grads = mean.new_empty(2 * s.parameters)
    merge_parts(_parameter_sums(s, tensors, activation), grads)
    return grad_input, grads[: s.parameters].clone(), grads[s.parameters :].clone()


def _parameter_sums(s: _Rows, tensors: tuple[Any, ...], activation: Activation) -> torch.Tensor:
    """Sums [parts, 2 parameters] of the gradients of weight and bias."""
    samples, parameters = s.rows // s.groups, s.parameters
    acc = acc_dtype(tensors[1].dtype)
    device = tensors[1].device
    if s.inner == 1:
        slices = max(1, min(samples // _SUM_ROWS, _MOST_SLICES))
        strips = cdiv(parameters, _COLUMNS)
        sums = torch.empty((slices, 2 * parameters), dtype=acc, device=device)
        launch(
            _columns_kernel, slices * strips, device, *tensors, sums,
            samples, parameters, s.size, s.groups, slices, cdiv(samples, slices * 16), strips,
            ACTIVATION=activation, BLOCK_R=16, BLOCK_C=_COLUMNS, num_warps=4,
        )  # fmt: skip
        return sums
    block = min(next_power_of_2(s.inner), _LOOPED)
    sums = torch.empty((samples, 2 * parameters), dtype=acc, device=device)
    launch(
        _channels_kernel, samples * parameters, device, *tensors, sums,
        parameters, s.size // s.inner, s.inner, cdiv(s.inner, block),
        ACTIVATION=activation, BLOCK=block, num_warps=max(1, min(8, block // 256)),
    )  # fmt: skip
    return sums


@triton.jit
def _parameters_at(weight_ptr, bias_ptr, parameter, exists, like):
    """Weight and bias at ``parameter``; 1 and 0 where there are none."""
    weight = tl.zeros_like(like) + 1.0
    bias = tl.zeros_like(like)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + parameter, mask=exists, other=0.0)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + parameter, mask=exists, other=0.0)
    return weight, bias


@triton.jit
def _place(row, first, size, inner, groups, rows, BLOCK_C: tl.constexpr):
    """Offsets, parameters and existence of BLOCK_C elements of each row, from ``first`` on."""
    column = first + tl.arange(0, BLOCK_C).to(tl.int64)
    exists = (row < rows)[:, None] & (column < size)[None, :]
    parameter = (row % groups * (size // inner))[:, None] + (column // inner)[None, :]
    return row[:, None] * size + column[None, :], parameter, exists


@triton.jit
def _reciprocal_deviation(variance, EPS: tl.constexpr):
    positive = variance + EPS
    if variance.dtype.scalar == tl.float64:  # noqa: SIM108 (a conditional expression would evaluate both)
        deviation = tl.sqrt(positive)
    else:
        deviation = tl.sqrt_rn(positive)
    return divide(tl.zeros_like(variance) + 1.0, deviation)


@triton.jit
def _write_normalized(
    x, mean, rstd, weight_ptr, bias_ptr, y_ptr, offset, parameter, exists, ACTIVATION: tl.constexpr
):
    storage: tl.constexpr = y_ptr.dtype.element_ty
    v = (x - mean[:, None]) * rstd[:, None]
    weight, bias = _parameters_at(weight_ptr, bias_ptr, parameter, exists, v)
    y = activate(tl.fma(v, weight, bias), ACTIVATION, storage)
    tl.store(y_ptr + offset, y.to(storage), mask=exists)


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr,
    rows: tl.int64, size: tl.int64, inner: tl.int64, groups: tl.int64,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, ONE_TILE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = mean_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    count = tl.zeros([BLOCK_R], acc) + size
    if ONE_TILE:
        offset, parameter, exists = _place(row, 0, size, inner, groups, rows, BLOCK_C)
        x = tl.load(x_ptr + offset, mask=exists, other=0.0).to(acc)
        mean = divide(tl.sum(x, axis=1), count)
        d = tl.where(exists, x - mean[:, None], 0.0)
        # The sum of deviations, which would be 0 of an exact mean, takes its rounding out of both.
        rest = divide(tl.sum(d, axis=1), count)
        variance = divide(tl.sum(d * d, axis=1), count) - rest * rest
        mean += rest
        rstd = _reciprocal_deviation(variance, EPS)
        _write_normalized(x, mean, rstd, weight_ptr, bias_ptr, y_ptr, offset, parameter, exists, ACTIVATION)
    else:
        sums = tl.zeros([BLOCK_R, BLOCK_C], acc)
        for first in tl.range(0, size, BLOCK_C):
            offset, _parameter, exists = _place(row, first, size, inner, groups, rows, BLOCK_C)
            sums += tl.load(x_ptr + offset, mask=exists, other=0.0).to(acc)
        mean = divide(tl.sum(sums, axis=1), count)
        sums = tl.zeros([BLOCK_R, BLOCK_C], acc)
        squares = tl.zeros([BLOCK_R, BLOCK_C], acc)
        for first in tl.range(0, size, BLOCK_C):
            offset, _parameter, exists = _place(row, first, size, inner, groups, rows, BLOCK_C)
            x = tl.load(x_ptr + offset, mask=exists, other=0.0).to(acc)
            d = tl.where(exists, x - mean[:, None], 0.0)
            sums += d
            squares += d * d
        rest = divide(tl.sum(sums, axis=1), count)
        variance = divide(tl.sum(squares, axis=1), count) - rest * rest
        mean += rest
        rstd = _reciprocal_deviation(variance, EPS)
        for first in tl.range(0, size, BLOCK_C):
            offset, parameter, exists = _place(row, first, size, inner, groups, rows, BLOCK_C)
            x = tl.load(x_ptr + offset, mask=exists, other=0.0).to(acc)
            _write_normalized(
                x, mean, rstd, weight_ptr, bias_ptr, y_ptr, offset, parameter, exists, ACTIVATION
            )
    tl.store(mean_ptr + row, mean, mask=row < rows)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)


@triton.jit
def _prepare(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, offset, parameter, exists, mean, rstd, ACTIVATION: tl.constexpr
):
    """The standardized x, the gradient of what the activation got, and that times the weight."""
    storage: tl.constexpr = x_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    x = tl.load(x_ptr + offset, mask=exists, other=0.0).to(acc)
    grad = tl.load(grad_ptr + offset, mask=exists, other=0.0).to(acc)
    v = tl.where(exists, (x - mean) * rstd, 0.0)
    weight, bias = _parameters_at(weight_ptr, bias_ptr, parameter, exists, v)
    grad = tl.where(exists, derive_from_input(tl.fma(v, weight, bias), grad, ACTIVATION, storage), 0.0)
    return v, grad, grad * weight


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, dx_ptr,
    rows: tl.int64, size: tl.int64, inner: tl.int64, groups: tl.int64,
    ACTIVATION: tl.constexpr, ONE_TILE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = x_ptr.dtype.element_ty
    acc: tl.constexpr = mean_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)[:, None]
    rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)[:, None]
    count = tl.zeros([BLOCK_R], acc) + size
    if ONE_TILE:
        offset, parameter, exists = _place(row, 0, size, inner, groups, rows, BLOCK_C)
        v, _grad, weighted = _prepare(
            grad_ptr, x_ptr, weight_ptr, bias_ptr, offset, parameter, exists, mean, rstd, ACTIVATION
        )
        mean_grad = divide(tl.sum(weighted, axis=1), count)
        mean_product = divide(tl.sum(weighted * v, axis=1), count)
        dx = (weighted - mean_grad[:, None] - v * mean_product[:, None]) * rstd
        tl.store(dx_ptr + offset, dx.to(storage), mask=exists)
    else:
        sums = tl.zeros([BLOCK_R, BLOCK_C], acc)
        products = tl.zeros([BLOCK_R, BLOCK_C], acc)
        for first in tl.range(0, size, BLOCK_C):
            offset, parameter, exists = _place(row, first, size, inner, groups, rows, BLOCK_C)
            v, _grad, weighted = _prepare(
                grad_ptr, x_ptr, weight_ptr, bias_ptr, offset, parameter, exists, mean, rstd, ACTIVATION
            )
            sums += weighted
            products += weighted * v
        mean_grad = divide(tl.sum(sums, axis=1), count)
        mean_product = divide(tl.sum(products, axis=1), count)
        for first in tl.range(0, size, BLOCK_C):
            offset, parameter, exists = _place(row, first, size, inner, groups, rows, BLOCK_C)
            v, _grad, weighted = _prepare(
                grad_ptr, x_ptr, weight_ptr, bias_ptr, offset, parameter, exists, mean, rstd, ACTIVATION
            )
            dx = (weighted - mean_grad[:, None] - v * mean_product[:, None]) * rstd
            tl.store(dx_ptr + offset, dx.to(storage), mask=exists)


@triton.jit(do_not_specialize=["samples", "slices", "steps"])
def _columns_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, sums_ptr,
    samples: tl.int64, columns: tl.int64, size: tl.int64, groups: tl.int64, slices: tl.int64,
    steps: tl.int64, strips: tl.int64,
    ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums down the columns of [``samples``, ``columns``]; program p of ``strips`` takes those of a strip.

    A slice of the ``slices`` takes every ``slices``-th block of rows, ``steps`` of them.
    """
    acc: tl.constexpr = mean_ptr.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    slice = pid // strips
    column = (pid - slice * strips) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < columns
    products = tl.zeros([BLOCK_R, BLOCK_C], acc)
    plain = tl.zeros([BLOCK_R, BLOCK_C], acc)
    for step in tl.range(0, steps):
        sample = (step * slices + slice) * BLOCK_R + tl.arange(0, BLOCK_R)
        exists = (sample < samples)[:, None] & inside[None, :]
        row = sample[:, None] * groups + (column // size)[None, :]
        mean = tl.load(mean_ptr + row, mask=exists, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=exists, other=0.0)
        offset = sample[:, None] * columns + column[None, :]
        v, grad, _weighted = _prepare(
            grad_ptr, x_ptr, weight_ptr, bias_ptr, offset, column[None, :], exists, mean, rstd, ACTIVATION
        )
        products += grad * v
        plain += grad
    place = sums_ptr + slice * 2 * columns + column
    tl.store(place, tl.sum(products, axis=0), mask=inside)
    tl.store(place + columns, tl.sum(plain, axis=0), mask=inside)


@triton.jit
def _channels_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, sums_ptr,
    parameters: tl.int64, of_row: tl.int64, inner: tl.int64, steps: tl.int64,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = mean_ptr.dtype.element_ty
    channel = tl.program_id(0).to(tl.int64)
    sample = channel // parameters
    parameter = channel - sample * parameters
    mean = tl.load(mean_ptr + channel // of_row)
    rstd = tl.load(rstd_ptr + channel // of_row)
    products = tl.zeros([BLOCK], acc)
    plain = tl.zeros([BLOCK], acc)
    for step in tl.range(0, steps):
        place = step * BLOCK + tl.arange(0, BLOCK)
        exists = place < inner
        v, grad, _weighted = _prepare(
            grad_ptr, x_ptr, weight_ptr, bias_ptr, channel * inner + place, parameter + place * 0, exists,
            mean, rstd, ACTIVATION,
        )  # fmt: skip
        products += grad * v
        plain += grad
    to = sums_ptr + sample * 2 * parameters + parameter
    tl.store(to, tl.sum(products, axis=0))
    tl.store(to + parameters, tl.sum(plain, axis=0))
