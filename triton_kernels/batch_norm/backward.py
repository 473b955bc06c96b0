"""Gradients of batch normalisation; formulas as in csrc/math/batch_norm.h."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..tools.activation import IDENTITY, RELU, derive_from_input
from .tiles import (
    SIZES,
    channels_of,
    first_row,
    load_map,
    locate_parts,
    locate_program,
    locate_tile,
    mask_bytes_of,
    norm_map,
    norm_map_of_columns,
    passes,
    rounded,
    store_map,
)


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
    tensors, i, exists, row, rows, channel, channels, strip, mask_bytes, center, scale, shift,
    ACTIVATION: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """The gradient of the activation's input, and x - center."""
    storage: tl.constexpr = tensors.x.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    g = tl.load(tensors.grad + i, mask=exists, other=0.0).to(acc)
    d = tl.load(tensors.x + i, mask=exists, other=0.0).to(acc) - center
    if tensors.mask is not None:
        VECTOR: tl.constexpr = 128 // storage.primitive_bitwidth  # what a thread loads of x at once
        place, bit, inside = mask_bytes_of(row, rows, channel, channels, strip, mask_bytes, VECTOR, TILING)
        byte = tl.load(tensors.mask + place, mask=inside, other=0).to(tl.int32) >> bit.to(tl.int32)
        bits = (byte[:, :, None] >> tl.arange(0, VECTOR)[None, None, :]) & 1
        g = tl.where(tl.reshape(bits, [TILING.height, TILING.width]) != 0, g, 0.0)
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
    tensors, partial_ptr, size: tl.int64, mask_bytes,
    rows, channels, inner, aligned_stride, aligned_width, strips, slices, steps,
    ACTIVATION: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Parts of each channel's sum of the gradient and, ``size`` elements on, of its product with x - mean.

    A row of relu's mask has ``mask_bytes`` bytes.
    """
    stride, width = aligned_stride * TILING.align, aligned_width * TILING.align
    channel, strip, slice, column = locate_program(strips, slices, TILING)
    acc: tl.constexpr = tl.float64 if tensors.x.dtype.element_ty == tl.float64 else tl.float32
    of_column, inside = channels_of(column, channel, channels, inner, width, TILING)
    center, scale, shift = norm_map_of_columns(tensors, of_column, inside, TILING)
    total = tl.full([TILING.height, TILING.width], 0.0, acc)
    products = tl.full([TILING.height, TILING.width], 0.0, acc)
    for step in tl.range(0, steps):
        first = first_row(step, slices, slice, TILING)
        row, i, exists = locate_tile(first, rows, stride, column, width, channel, TILING)
        g, d = _gradient(
            tensors, i, exists, row, rows, channel, channels, strip, mask_bytes, center, scale, shift,
            ACTIVATION, TILING,
        )  # fmt: skip
        total += g
        products += g * d
    sum = tl.sum(total.to(tl.float64), axis=0)
    product = tl.sum(products.to(tl.float64), axis=0)
    if TILING.runs:
        sum, product = tl.sum(sum, axis=0), tl.sum(product, axis=0)
        place = ((slice * strips + strip) * channels + channel).to(tl.int64)
    else:
        place = (slice * width + column).to(tl.int64)
    # Of products with x - mean; center is the mean rounded.
    mean = tl.load(tensors.mean + of_column, mask=inside, other=0.0)
    product -= (mean - mean.to(acc).to(tl.float64)) * sum
    tl.store(partial_ptr + place, sum, mask=inside)
    tl.store(partial_ptr + size + place, product, mask=inside)


@triton.jit
def _added(partial_ptr, channel, channels, parts, distance, steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What :func:`gradient_sums_kernel` left, ``ROWS`` parts of ``COLUMNS`` channels at a time."""
    sums = tl.zeros([ROWS, COLUMNS], tl.float64)
    products = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in tl.range(0, steps):
        place, exists = locate_parts(step, channel, channels, parts, distance, ROWS)
        sums += tl.load(partial_ptr + place, mask=exists, other=0.0)
        products += tl.load(partial_ptr + parts * channels + place, mask=exists, other=0.0)
    return tl.sum(sums, axis=0), tl.sum(products, axis=0)


@triton.jit(do_not_specialize=["parts", "steps", "distance"])
def add_kernel(
    partial_ptr, result_ptr, channels: tl.int64, parts, distance, steps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    sum, product = _added(partial_ptr, channel, channels, parts, distance, steps, ROWS, COLUMNS)
    tl.store(result_ptr + channel, sum, mask=channel < channels)
    tl.store(result_ptr + channels + channel, product, mask=channel < channels)


@triton.jit(do_not_specialize=["parts", "steps", "distance", "count"])
def finish_gradients_kernel(
    tensors, partial_ptr, means_ptr, grad_weight_ptr, grad_bias_ptr, map_ptr, count: tl.int64,
    channels: tl.int64, parts, distance, steps,
    THROUGH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of weight and bias, unless None, and what the input's gradient takes of each channel.

    ``map_ptr``: center, scale, shift, slope and offset [5, channels], the last two if ``THROUGH``: if the
    statistics depend on the input. ``partial_ptr``: what :func:`gradient_sums_kernel` left, None if neither
    asks for it. ``means_ptr``: instead of these sums over ``count`` elements, means of several processes.
    """
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    mean = tl.load(tensors.mean + channel, mask=exists, other=0.0)
    rstd = tl.load(tensors.rstd + channel, mask=exists, other=0.0)
    center, scale, shift = norm_map(mean, rstd, tensors.weight, tensors.bias, channel, exists)
    store_map(map_ptr, 0, channel, channels, center)
    store_map(map_ptr, 1, channel, channels, scale)
    store_map(map_ptr, 2, channel, channels, shift)
    r = rstd.to(tl.float64)
    if partial_ptr is not None:
        sum, product = _added(partial_ptr, channel, channels, parts, distance, steps, ROWS, COLUMNS)
    if grad_weight_ptr is not None:
        tl.store(grad_weight_ptr + channel, rounded(product * r, grad_weight_ptr), mask=exists)
        tl.store(grad_bias_ptr + channel, rounded(sum, grad_bias_ptr), mask=exists)
    if THROUGH:  # what goes through the batch's mean and variance
        if means_ptr is not None:
            mean_grad = tl.load(means_ptr + channel, mask=exists, other=0.0)
            mean_product = tl.load(means_ptr + channels + channel, mask=exists, other=0.0)
        else:
            mean_grad, mean_product = sum / count, product / count
        factor = scale.to(tl.float64)
        slope = -factor * r * r * mean_product
        offset = -factor * mean_grad - slope * (mean - center.to(tl.float64))
        store_map(map_ptr, 3, channel, channels, slope.to(scale.dtype))
        store_map(map_ptr, 4, channel, channels, offset.to(scale.dtype))


@triton.jit(do_not_specialize=["mask_bytes", *SIZES])
def input_gradient_kernel(
    tensors, map_ptr, dx_ptr, dresidual_ptr, mask_bytes,
    rows, channels, inner, aligned_stride, aligned_width, strips, slices, steps,
    ACTIVATION: tl.constexpr, THROUGH: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Writes ``dx_ptr`` and ``dresidual_ptr``, unless None.

    ``map_ptr``: what :func:`finish_gradients_kernel` wrote; ``THROUGH``: as there. A row of relu's mask has
    ``mask_bytes`` bytes.
    """
    stride, width = aligned_stride * TILING.align, aligned_width * TILING.align
    channel, strip, slice, column = locate_program(strips, slices, TILING)
    storage: tl.constexpr = tensors.x.dtype.element_ty
    of_column, inside = channels_of(column, channel, channels, inner, width, TILING)
    center = load_map(map_ptr, 0, of_column, channels, inside, TILING)
    scale = load_map(map_ptr, 1, of_column, channels, inside, TILING)
    shift = load_map(map_ptr, 2, of_column, channels, inside, TILING)
    first = first_row(0, slices, slice, TILING)
    row, i, exists = locate_tile(first, rows, stride, column, width, channel, TILING)
    g, d = _gradient(
        tensors, i, exists, row, rows, channel, channels, strip, mask_bytes, center, scale, shift,
        ACTIVATION, TILING,
    )  # fmt: skip
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + i, g.to(storage), mask=exists)
    if dx_ptr is not None:
        dx = g * scale
        if THROUGH:
            slope = load_map(map_ptr, 3, of_column, channels, inside, TILING)
            offset = load_map(map_ptr, 4, of_column, channels, inside, TILING)
            dx += d * slope + offset
        tl.store(dx_ptr + i, dx.to(storage), mask=exists)
