"""The kernels of batch normalisation, for the launchers in ``batch_norm.py``; formulas as in
csrc/math/batch_norm.h.

A program's tile is a piece of some rows: of one channel (``RUNS``), or of columns whose channels alternate.
"""

import triton
import triton.language as tl

from ..tools.activation import IDENTITY, RELU, activate, derive_from_input

# Where mean and rstd come from.
OF_BATCH: tl.constexpr = tl.constexpr(0)
GIVEN: tl.constexpr = tl.constexpr(1)
RUNNING: tl.constexpr = tl.constexpr(2)


@triton.jit
def _share(strips, slices, BLOCK_W: tl.constexpr):
    """This program's channel (0 where channels alternate), number of its strip, slice and its columns."""
    pid = tl.program_id(0).to(tl.int64)
    part = pid // strips
    strip = pid - part * strips
    channel = part // slices
    return channel, strip, part - channel * slices, strip * BLOCK_W + tl.arange(0, BLOCK_W)


@triton.jit
def _tile(step, slices, slice, rows, stride, column, width, channel, BLOCK_R: tl.constexpr):
    """Rows of the ``step``-th tile of a slice, the places of its elements, and which of them exist."""
    row = (step * slices + slice) * BLOCK_R + tl.arange(0, BLOCK_R)
    exists = (row < rows)[:, None] & (column < width)[None, :]
    return row, row[:, None] * stride + (channel * width + column)[None, :], exists


@triton.jit
def statistics_kernel(
    x_ptr, partial_ptr, size: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, strip, slice, column = _share(strips, slices, BLOCK_W)
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    _row, i, exists = _tile(0, slices, slice, rows, stride, column, width, channel, BLOCK_R)
    x = tl.load(x_ptr + i, mask=exists, other=0.0).to(acc)
    # The mean of the first tile: of a column, or of all where they are one channel's.
    number = tl.sum(exists.to(acc), axis=0)
    shift = tl.sum(x, axis=0)
    if RUNS:
        number, shift = tl.sum(number, axis=0), tl.sum(shift, axis=0)
    shift = shift / tl.where(number > 0.0, number, 1.0)
    shifts = tl.zeros([1, BLOCK_W], acc) + shift
    total = tl.zeros([BLOCK_R, BLOCK_W], acc)
    squares = tl.zeros([BLOCK_R, BLOCK_W], acc)
    counts = tl.zeros([BLOCK_R, BLOCK_W], tl.int32)
    for step in tl.range(0, steps):
        _row, i, exists = _tile(step, slices, slice, rows, stride, column, width, channel, BLOCK_R)
        x = tl.load(x_ptr + i, mask=exists, other=0.0).to(acc)
        d = tl.where(exists, x - shifts, 0.0)
        total += d
        squares += d * d
        counts += exists.to(tl.int32)
    count = tl.sum(counts.to(tl.float64), axis=0)
    sum = tl.sum(total.to(tl.float64), axis=0)
    square = tl.sum(squares.to(tl.float64), axis=0)
    if RUNS:
        count, sum, square = tl.sum(count, axis=0), tl.sum(sum, axis=0), tl.sum(square, axis=0)
    offset = sum / tl.where(count > 0.0, count, 1.0)
    m2 = square - sum * offset
    m2 = tl.where(m2 < 0.0, 0.0, m2)
    mean = shift.to(tl.float64) + offset
    if RUNS:
        place = (slice * strips + strip) * channels + channel
        inside = channel < channels
    else:
        place = slice * width + column
        inside = column < width
    tl.store(partial_ptr + place, count, mask=inside)
    tl.store(partial_ptr + size + place, mean, mask=inside)
    tl.store(partial_ptr + 2 * size + place, m2, mask=inside)


@triton.jit
def _parts(step, channel, channels, parts, distance, ROWS: tl.constexpr):
    """Places of partial results of ``channel``s, and which of them exist."""
    k = step * ROWS + tl.arange(0, ROWS).to(tl.int64)
    block = k // distance
    place = (block * channels * distance + (k - block * distance))[:, None] + channel[None, :] * distance
    return place, (k < parts)[:, None] & (channel < channels)[None, :]


@triton.jit
def _merged(
    partial_ptr, channel, channels, parts, distance, steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Count, mean and sum of squared deviations of channels: the means first, then what is about them."""
    size = parts * channels
    counts = tl.zeros([ROWS, COLUMNS], tl.float64)
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in tl.range(0, steps):
        place, exists = _parts(step, channel, channels, parts, distance, ROWS)
        count = tl.load(partial_ptr + place, mask=exists, other=0.0)
        counts += count
        total += count * tl.load(partial_ptr + size + place, mask=exists, other=0.0)
    count = tl.sum(counts, axis=0)
    mean = tl.sum(total, axis=0) / tl.where(count > 0.0, count, 1.0)
    squares = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in tl.range(0, steps):
        place, exists = _parts(step, channel, channels, parts, distance, ROWS)
        apart = tl.load(partial_ptr + size + place, mask=exists, other=0.0) - mean[None, :]
        weight = tl.load(partial_ptr + place, mask=exists, other=0.0)
        squares += tl.load(partial_ptr + 2 * size + place, mask=exists, other=0.0)
        squares += tl.where(exists, weight * apart * apart, 0.0)
    return count, mean, tl.sum(squares, axis=0)


@triton.jit
def _rounded(x, ptr):
    """A float64 as what ``ptr`` points to; there is no way to 16 bits but over float32."""
    if ptr.dtype.element_ty == tl.float64:
        return x
    else:
        return x.to(tl.float32).to(ptr.dtype.element_ty)


@triton.jit
def merge_kernel(
    partial_ptr, result_ptr, channels: tl.int64, parts: tl.int64, distance: tl.int64, steps: tl.int64,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    _count, mean, m2 = _merged(partial_ptr, channel, channels, parts, distance, steps, ROWS, COLUMNS)
    tl.store(result_ptr + channel, mean, mask=channel < channels)
    tl.store(result_ptr + channels + channel, m2, mask=channel < channels)


@triton.jit
def finish_statistics_kernel(
    partial_ptr, statistics_ptr, running_mean_ptr, running_var_ptr, mean_ptr, rstd_ptr,
    channels: tl.int64, parts: tl.int64, distance: tl.int64, steps: tl.int64, momentum, eps,
    SOURCE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    if SOURCE == OF_BATCH:
        count, mean, m2 = _merged(partial_ptr, channel, channels, parts, distance, steps, ROWS, COLUMNS)
        var = m2 / tl.where(count > 0.0, count, 1.0)
        if running_mean_ptr is not None:
            old = tl.load(running_mean_ptr + channel, mask=exists, other=0.0).to(tl.float64)
            new = (1.0 - momentum) * old + momentum * mean
            tl.store(running_mean_ptr + channel, _rounded(new, running_mean_ptr), mask=exists)
        if running_var_ptr is not None:
            old = tl.load(running_var_ptr + channel, mask=exists, other=0.0).to(tl.float64)
            new = (1.0 - momentum) * old + momentum * (m2 / (count - 1.0))
            tl.store(running_var_ptr + channel, _rounded(new, running_var_ptr), mask=exists)
    elif SOURCE == GIVEN:
        mean = tl.load(statistics_ptr + channel, mask=exists, other=0.0)
        var = tl.load(statistics_ptr + channels + channel, mask=exists, other=1.0)
    else:
        mean = tl.load(running_mean_ptr + channel, mask=exists, other=0.0).to(tl.float64)
        var = tl.load(running_var_ptr + channel, mask=exists, other=1.0).to(tl.float64)
    rstd = 1.0 / tl.sqrt(tl.where(exists, var, 1.0) + eps)
    tl.store(mean_ptr + channel, mean, mask=exists)
    tl.store(rstd_ptr + channel, _rounded(rstd, rstd_ptr), mask=exists)


@triton.jit
def _vector(ptr, channel, exists, acc: tl.constexpr, default: tl.constexpr):
    """Numbers of channels, those of an absent vector being ``default``."""
    if ptr is None:
        return tl.zeros_like(channel).to(acc) + default
    else:
        return tl.load(ptr + channel, mask=exists, other=0.0).to(acc)


@triton.jit
def _channels_of(column, channel, inner, width, RUNS: tl.constexpr):
    """The channel of each column, and whether it exists."""
    exists = column < width
    if RUNS:
        return tl.where(exists, channel, 0), exists
    else:
        return tl.where(exists, column // inner, 0), exists


@triton.jit
def _norm_map(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, channel, exists, acc: tl.constexpr):
    """Center, scale and shift of each column; the mean's part beyond the center is in the shift."""
    mean = tl.load(mean_ptr + channel, mask=exists, other=0.0)
    scale = tl.load(rstd_ptr + channel, mask=exists, other=0.0) * _vector(
        weight_ptr, channel, exists, acc, 1.0
    )
    bias = _vector(bias_ptr, channel, exists, acc, 0.0)
    center = mean.to(acc)
    rest = mean - center.to(tl.float64)
    shift = (bias.to(tl.float64) - rest * scale.to(tl.float64)).to(acc)
    return center[None, :], scale[None, :], shift[None, :]


@triton.jit
def _passes(z, storage: tl.constexpr):
    """Whether relu's gradient passes: unless what is stored is 0 or less."""
    if storage == tl.float16:
        return ~(z <= 2.98023223876953125e-8)  # 2^-25
    elif storage == tl.bfloat16:
        return ~(z <= 4.591774807899560578e-41)  # 2^-134
    else:
        return ~(z <= 0.0)


@triton.jit
def normalize_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, mean_ptr, rstd_ptr, y_ptr, mask_ptr, mask_bytes: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, strip, slice, column = _share(strips, slices, BLOCK_W)
    storage: tl.constexpr = x_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    of_column, inside = _channels_of(column, channel, inner, width, RUNS)
    center, scale, shift = _norm_map(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, of_column, inside, acc)
    row, i, exists = _tile(0, slices, slice, rows, stride, column, width, channel, BLOCK_R)
    x = tl.load(x_ptr + i, mask=exists, other=0.0).to(acc)
    z = tl.fma(x - center, scale + tl.zeros_like(x), shift + tl.zeros_like(x))
    if residual_ptr is not None:
        z += tl.load(residual_ptr + i, mask=exists, other=0.0).to(acc)
    if mask_ptr is not None:
        bits = (_passes(z, storage) & exists).to(tl.int32)
        weights = tl.reshape(bits, [BLOCK_R, BLOCK_W // 8, 8]) << tl.arange(0, 8)[None, None, :]
        byte = strip * (BLOCK_W // 8) + tl.arange(0, BLOCK_W // 8)
        mask_row = row * channels + channel if RUNS else row
        place = mask_row[:, None] * mask_bytes + byte[None, :]
        inside = (row < rows)[:, None] & (byte < mask_bytes)[None, :]
        tl.store(mask_ptr + place, tl.sum(weights, axis=2).to(tl.uint8), mask=inside)
    tl.store(y_ptr + i, activate(z, KIND, A, B, storage).to(storage), mask=exists)


@triton.jit
def _gradient(
    grad_ptr, x_ptr, residual_ptr, mask_ptr, i, exists, row, column, channel, channels, mask_bytes,
    center, scale, shift,
    KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr, MASKED: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """The gradient in front of the activation, and x - center."""
    storage: tl.constexpr = x_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    g = tl.load(grad_ptr + i, mask=exists, other=0.0).to(acc)
    d = tl.load(x_ptr + i, mask=exists, other=0.0).to(acc) - center
    if MASKED:
        mask_row = row * channels + channel if RUNS else row
        place = mask_row[:, None] * mask_bytes + (column // 8)[None, :]
        bits = (
            tl.load(mask_ptr + place, mask=exists, other=0).to(tl.int32) >> (column % 8).to(tl.int32)[None, :]
        )
        g = tl.where((bits & 1) != 0, g, 0.0)
    elif KIND != IDENTITY:
        z = tl.fma(d, scale + tl.zeros_like(d), shift + tl.zeros_like(d))
        if residual_ptr is not None:
            z += tl.load(residual_ptr + i, mask=exists, other=0.0).to(acc)
        if KIND == RELU:
            g = tl.where(_passes(z, storage), g, 0.0)
        else:
            g = derive_from_input(z, g, KIND, A, B, storage)
    return tl.where(exists, g, 0.0), tl.where(exists, d, 0.0)


@triton.jit
def gradient_sums_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, mask_ptr, mean_ptr, rstd_ptr, partial_ptr,
    size: tl.int64, mask_bytes: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr, MASKED: tl.constexpr,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, strip, slice, column = _share(strips, slices, BLOCK_W)
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    of_column, inside = _channels_of(column, channel, inner, width, RUNS)
    center, scale, shift = _norm_map(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, of_column, inside, acc)
    total = tl.zeros([BLOCK_R, BLOCK_W], acc)
    products = tl.zeros([BLOCK_R, BLOCK_W], acc)
    for step in tl.range(0, steps):
        row, i, exists = _tile(step, slices, slice, rows, stride, column, width, channel, BLOCK_R)
        g, d = _gradient(
            grad_ptr, x_ptr, residual_ptr, mask_ptr, i, exists, row, column, channel, channels, mask_bytes,
            center, scale, shift, KIND, A, B, MASKED, RUNS,
        )  # fmt: skip
        total += g
        products += g * d
    sum = tl.sum(total.to(tl.float64), axis=0)
    # Of products with x - mean; center is the mean rounded.
    mean = tl.load(mean_ptr + of_column, mask=inside, other=0.0)
    product = tl.sum(products.to(tl.float64), axis=0) - (mean - mean.to(acc).to(tl.float64)) * sum
    if RUNS:
        sum, product = tl.sum(sum, axis=0), tl.sum(product, axis=0)
        place = (slice * strips + strip) * channels + channel
        inside = channel < channels
    else:
        place = slice * width + column
    tl.store(partial_ptr + place, sum, mask=inside)
    tl.store(partial_ptr + size + place, product, mask=inside)


@triton.jit
def add_kernel(
    partial_ptr, result_ptr, channels: tl.int64, parts: tl.int64, distance: tl.int64, steps: tl.int64,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float64)
    products = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in tl.range(0, steps):
        place, exists = _parts(step, channel, channels, parts, distance, ROWS)
        sums += tl.load(partial_ptr + place, mask=exists, other=0.0)
        products += tl.load(partial_ptr + parts * channels + place, mask=exists, other=0.0)
    tl.store(result_ptr + channel, tl.sum(sums, axis=0), mask=channel < channels)
    tl.store(result_ptr + channels + channel, tl.sum(products, axis=0), mask=channel < channels)


@triton.jit
def affine_gradients_kernel(
    sums_ptr, rstd_ptr, grad_weight_ptr, grad_bias_ptr, channels: tl.int64, COLUMNS: tl.constexpr
):
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    sum = tl.load(sums_ptr + channel, mask=exists, other=0.0)
    product = tl.load(sums_ptr + channels + channel, mask=exists, other=0.0)
    rstd = tl.load(rstd_ptr + channel, mask=exists, other=0.0).to(tl.float64)
    tl.store(grad_weight_ptr + channel, _rounded(product * rstd, grad_weight_ptr), mask=exists)
    tl.store(grad_bias_ptr + channel, _rounded(sum, grad_bias_ptr), mask=exists)


@triton.jit
def input_gradient_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, mask_ptr, mean_ptr, rstd_ptr, means_ptr, dx_ptr,
    dresidual_ptr, count: tl.int64, mask_bytes: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr, MASKED: tl.constexpr,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, _strip, slice, column = _share(strips, slices, BLOCK_W)
    storage: tl.constexpr = x_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    of_column, inside = _channels_of(column, channel, inner, width, RUNS)
    center, scale, shift = _norm_map(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, of_column, inside, acc)
    row, i, exists = _tile(0, slices, slice, rows, stride, column, width, channel, BLOCK_R)
    g, d = _gradient(
        grad_ptr, x_ptr, residual_ptr, mask_ptr, i, exists, row, column, channel, channels, mask_bytes,
        center, scale, shift, KIND, A, B, MASKED, RUNS,
    )  # fmt: skip
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + i, g.to(storage), mask=exists)
    if dx_ptr is not None:
        dx = g * scale
        if means_ptr is not None:  # what goes through the batch's mean and variance
            mean_grad = tl.load(means_ptr + of_column, mask=inside, other=0.0) / count
            mean_product = tl.load(means_ptr + channels + of_column, mask=inside, other=0.0) / count
            mean = tl.load(mean_ptr + of_column, mask=inside, other=0.0)
            rstd = tl.load(rstd_ptr + of_column, mask=inside, other=0.0).to(tl.float64)
            factor = tl.reshape(scale, [BLOCK_W]).to(tl.float64)
            slope = -factor * rstd * rstd * mean_product
            offset = -factor * mean_grad - slope * (mean - mean.to(acc).to(tl.float64))
            dx += d * slope.to(acc)[None, :] + offset.to(acc)[None, :]
        tl.store(dx_ptr + i, dx.to(storage), mask=exists)
