"""Gradients of batch normalisation; formulas as in csrc/math/batch_norm.h."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..tools.activation import IDENTITY, RELU, derive_from_input
from .tiles import SIZES, channels_of, locate_parts, locate_program, locate_tile, norm_map, passes, rounded


class Tensors(NamedTuple):
    """What backward reads.

    ``grad``: the output's gradient; ``x``, ``weight``, ``bias`` and ``residual``: forward's inputs;
    ``mask``: relu's bits, forward's output; ``mean`` and ``rstd``: the statistics that forward used.
    """

    grad: torch.Tensor
    x: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    mask: torch.Tensor | None
    mean: torch.Tensor
    rstd: torch.Tensor


@triton.jit
def _gradient(
    tensors, i, exists, row, column, channel, channels, mask_bytes, center, scale, shift,
    ACTIVATION: tl.constexpr, MASKED: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """The gradient of the activation's input, and x - center."""
    storage: tl.constexpr = tensors.x.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    g = tl.load(tensors.grad + i, mask=exists, other=0.0).to(acc)
    d = tl.load(tensors.x + i, mask=exists, other=0.0).to(acc) - center
    if MASKED:
        mask_row = row * channels + channel if RUNS else row
        place = mask_row[:, None] * mask_bytes + (column // 8)[None, :]
        byte = tl.load(tensors.mask + place, mask=exists, other=0).to(tl.int32)
        bits = byte >> (column % 8).to(tl.int32)[None, :]
        g = tl.where((bits & 1) != 0, g, 0.0)
    elif ACTIVATION.kind != IDENTITY:
        z = tl.fma(d, scale + tl.zeros_like(d), shift + tl.zeros_like(d))
        if tensors.residual is not None:
            z += tl.load(tensors.residual + i, mask=exists, other=0.0).to(acc)
        if ACTIVATION.kind == RELU:
            g = tl.where(passes(z, storage), g, 0.0)
        else:
            g = derive_from_input(z, g, ACTIVATION, storage)
    return tl.where(exists, g, 0.0), tl.where(exists, d, 0.0)


@triton.jit(do_not_specialize=["size", "mask_bytes", *SIZES])
def gradient_sums_kernel(
    tensors, partial_ptr, size: tl.int64, mask_bytes: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    ACTIVATION: tl.constexpr, MASKED: tl.constexpr,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Parts of each channel's sum of the gradient and, ``size`` elements on, of its product with x - mean.

    A row of relu's mask, which is read if ``MASKED``, has ``mask_bytes`` bytes.
    """
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, strip, slice, column = locate_program(strips, slices, BLOCK_W)
    acc: tl.constexpr = tl.float64 if tensors.x.dtype.element_ty == tl.float64 else tl.float32
    of_column, inside = channels_of(column, channel, inner, width, RUNS)
    center, scale, shift = norm_map(tensors, of_column, inside, acc)
    total = tl.zeros([BLOCK_R, BLOCK_W], acc)
    products = tl.zeros([BLOCK_R, BLOCK_W], acc)
    for step in tl.range(0, steps):
        row, i, exists = locate_tile(step, slices, slice, rows, stride, column, width, channel, BLOCK_R)
        g, d = _gradient(
            tensors, i, exists, row, column, channel, channels, mask_bytes, center, scale, shift,
            ACTIVATION, MASKED, RUNS,
        )  # fmt: skip
        total += g
        products += g * d
    sum = tl.sum(total.to(tl.float64), axis=0)
    # Of products with x - mean; center is the mean rounded.
    mean = tl.load(tensors.mean + of_column, mask=inside, other=0.0)
    product = tl.sum(products.to(tl.float64), axis=0) - (mean - mean.to(acc).to(tl.float64)) * sum
    if RUNS:
        sum, product = tl.sum(sum, axis=0), tl.sum(product, axis=0)
        place = (slice * strips + strip) * channels + channel
        inside = channel < channels
    else:
        place = slice * width + column
    tl.store(partial_ptr + place, sum, mask=inside)
    tl.store(partial_ptr + size + place, product, mask=inside)


@triton.jit(do_not_specialize=["parts", "steps", "distance"])
def add_kernel(
    partial_ptr, result_ptr, channels: tl.int64, parts: tl.int64, distance: tl.int64, steps: tl.int64,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds up what :func:`gradient_sums_kernel` left, ``ROWS`` parts of ``COLUMNS`` channels at a time."""
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float64)
    products = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in tl.range(0, steps):
        place, exists = locate_parts(step, channel, channels, parts, distance, ROWS)
        sums += tl.load(partial_ptr + place, mask=exists, other=0.0)
        products += tl.load(partial_ptr + parts * channels + place, mask=exists, other=0.0)
    tl.store(result_ptr + channel, tl.sum(sums, axis=0), mask=channel < channels)
    tl.store(result_ptr + channels + channel, tl.sum(products, axis=0), mask=channel < channels)


@triton.jit
def affine_gradients_kernel(
    sums_ptr, rstd_ptr, grad_weight_ptr, grad_bias_ptr, channels: tl.int64, COLUMNS: tl.constexpr
):
    """Gradients of weight and bias, from the sums."""
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    sum = tl.load(sums_ptr + channel, mask=exists, other=0.0)
    product = tl.load(sums_ptr + channels + channel, mask=exists, other=0.0)
    rstd = tl.load(rstd_ptr + channel, mask=exists, other=0.0).to(tl.float64)
    tl.store(grad_weight_ptr + channel, rounded(product * rstd, grad_weight_ptr), mask=exists)
    tl.store(grad_bias_ptr + channel, rounded(sum, grad_bias_ptr), mask=exists)


@triton.jit(do_not_specialize=["count", "mask_bytes", *SIZES])
def input_gradient_kernel(
    tensors, means_ptr, dx_ptr, dresidual_ptr, count: tl.int64, mask_bytes: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    ACTIVATION: tl.constexpr, MASKED: tl.constexpr,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Writes ``dx_ptr`` and ``dresidual_ptr``, unless None.

    ``means_ptr`` has the sums of :func:`gradient_sums_kernel`, to be divided by ``count``; it is None where
    the statistics do not depend on the input. A row of relu's mask, read if ``MASKED``, has ``mask_bytes``
    bytes.
    """
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, _strip, slice, column = locate_program(strips, slices, BLOCK_W)
    storage: tl.constexpr = tensors.x.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    of_column, inside = channels_of(column, channel, inner, width, RUNS)
    center, scale, shift = norm_map(tensors, of_column, inside, acc)
    row, i, exists = locate_tile(0, slices, slice, rows, stride, column, width, channel, BLOCK_R)
    g, d = _gradient(
        tensors, i, exists, row, column, channel, channels, mask_bytes, center, scale, shift,
        ACTIVATION, MASKED, RUNS,
    )  # fmt: skip
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + i, g.to(storage), mask=exists)
    if dx_ptr is not None:
        dx = g * scale
        if means_ptr is not None:  # what goes through the batch's mean and variance
            mean_grad = tl.load(means_ptr + of_column, mask=inside, other=0.0) / count
            mean_product = tl.load(means_ptr + channels + of_column, mask=inside, other=0.0) / count
            mean = tl.load(tensors.mean + of_column, mask=inside, other=0.0)
            rstd = tl.load(tensors.rstd + of_column, mask=inside, other=0.0).to(tl.float64)
            factor = tl.reshape(scale, [BLOCK_W]).to(tl.float64)
            slope = -factor * rstd * rstd * mean_product
            offset = -factor * mean_grad - slope * (mean - mean.to(acc).to(tl.float64))
            dx += d * slope.to(acc)[None, :] + offset.to(acc)[None, :]
        tl.store(dx_ptr + i, dx.to(storage), mask=exists)
