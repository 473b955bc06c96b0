"""What test_triton_compile.py compiles: calls of the Triton launchers on meta tensors, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

HALF, BFLOAT16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
NONE, MEAN, SUM = 0, 1, 2


def _empty(*shape: int, dtype: torch.dtype = FLOAT) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _softmax(shape: tuple[int, ...], dtype: torch.dtype, log: bool) -> None:
    from pyops.triton_kernels.classes import softmax

    x = _empty(*shape, dtype=dtype)
    softmax.softmax_backward(x, softmax.softmax_forward(x, 1, log), 1, log)


def _nll_loss(shape: tuple[int, ...], dtype: torch.dtype, reduction: int, weighted: bool) -> None:
    from pyops.triton_kernels.classes import nll_loss

    acc = DOUBLE if dtype == DOUBLE else FLOAT
    target = _empty(shape[0], *shape[2:], dtype=torch.int64)
    weight = _empty(shape[1], dtype=acc) if weighted else None
    loss, total = nll_loss.nll_loss_forward(_empty(*shape, dtype=dtype), target, weight, reduction, -100)
    nll_loss.nll_loss_backward(loss, target, weight, total, shape[1], reduction, -100, dtype)


def _max_pool2d(
    shape: tuple[int, ...], dtype: torch.dtype, kernel: int, stride: int, padding: int, channels_last: bool
) -> None:
    from pyops.triton_kernels.pooling import max_pool2d

    windows = ([kernel] * 2, [stride] * 2, [padding] * 2, [1, 1], False, channels_last)
    y, argmax = max_pool2d.max_pool2d_forward(_empty(*shape, dtype=dtype), *windows)
    size = list(shape[1:3] if channels_last else shape[2:])
    max_pool2d.max_pool2d_backward(y, argmax, size, *windows)
    max_pool2d.max_pool2d_indices(argmax, size, *windows)


def _avg_pool2d(shape: tuple[int, ...], dtype: torch.dtype, kernel: int, channels_last: bool) -> None:
    from pyops.triton_kernels.pooling import avg_pool2d

    windows = ([kernel] * 2, [kernel] * 2, [0, 0], False, True, None, channels_last)
    y = avg_pool2d.avg_pool2d_forward(_empty(*shape, dtype=dtype), *windows)
    size = list(shape[1:3] if channels_last else shape[2:])
    avg_pool2d.avg_pool2d_backward(y, size, *windows)


def _adaptive_avg_pool2d(
    shape: tuple[int, ...], dtype: torch.dtype, output: int, channels_last: bool
) -> None:
    from pyops.triton_kernels.pooling import avg_pool2d

    y = avg_pool2d.adaptive_avg_pool2d_forward(_empty(*shape, dtype=dtype), [output] * 2, channels_last)
    size = list(shape[1:3] if channels_last else shape[2:])
    avg_pool2d.adaptive_avg_pool2d_backward(y, size, channels_last)


def _cross_entropy(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    reduction: int = MEAN,
    probabilities: bool = False,
    all_options: bool = False,
    inplace: bool = False,
) -> None:
    from pyops.triton_kernels.classes import cross_entropy

    acc = DOUBLE if dtype == DOUBLE else FLOAT
    row_shape = (shape[0], *shape[2:])
    logits = _empty(*shape, dtype=dtype)
    target = _empty(*shape, dtype=dtype) if probabilities else _empty(*row_shape, dtype=torch.int64)
    weight = _empty(shape[1], dtype=acc) if all_options else None
    per_row = _empty(*row_shape, dtype=acc) if all_options else None
    options = (reduction, -100, 0.1 if all_options else 0.0, 1e-4 if all_options else 0.0)
    loss, stats, divisor = cross_entropy.cross_entropy_forward(logits, target, weight, per_row, *options)
    backward = cross_entropy.cross_entropy_backward_ if inplace else cross_entropy.cross_entropy_backward
    backward(loss, per_row, logits, target, weight, per_row, stats, divisor, *options)


def _gemm(
    m: int, n: int, k: int, dtype: torch.dtype, layout: str = "nn", out: torch.dtype | None = None,
    beta: float = 0.0, tf32: bool = False,
) -> None:  # fmt: skip
    from pyops.triton_kernels import gemm

    a = _empty(m, k, dtype=dtype) if layout[0] == "n" else _empty(k, m, dtype=dtype).t()
    b = _empty(k, n, dtype=dtype) if layout[1] == "n" else _empty(n, k, dtype=dtype).t()
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        gemm.gemm_(_empty(m, n, dtype=out or dtype), a, b, beta)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _activations(shape: tuple[int, ...], dtype: torch.dtype, *kinds: tuple[int, float, float, bool]) -> None:
    from pyops.triton_kernels import activation

    x = _empty(*shape, dtype=dtype)
    for kind, a, b, saved_is_output in kinds:
        activation.activation_forward(x, kind, a, b)
        activation.activation_backward(x, x, kind, a, b, saved_is_output)


def _prelu(shape: tuple[int, ...], slopes: int, dtype: torch.dtype) -> None:
    from pyops.triton_kernels import prelu

    x, weight = _empty(*shape, dtype=dtype), _empty(slopes, dtype=dtype)
    prelu.prelu_forward(x, weight, 1)
    prelu.prelu_backward(x, x, weight, 1)


def _embedding(
    rows: int, dim: int, positions: int, dtype: torch.dtype, scaled: bool = False, norm_type: float = 2.0
) -> None:
    from pyops.triton_kernels import embedding

    indices = _empty(positions, dtype=torch.int64)
    weight = _empty(rows, dim, dtype=dtype)
    output = embedding.embedding_forward(weight, indices)
    embedding.embedding_backward(output, indices, rows, -1, scaled)
    embedding.embedding_renorm_(weight, indices, 1.0, norm_type)


def _interpolate(shape: tuple[int, ...], size: list[int], dtype: torch.dtype, channels_last: bool) -> None:
    from pyops.triton_kernels import interpolate

    factors, exact = [0.0] * len(size), dtype != FLOAT
    x = _empty(*shape, dtype=dtype)
    y = interpolate.interpolate_nearest_forward(x, size, factors, exact, channels_last)
    own = list(shape[1:-1] if channels_last else shape[2:])
    interpolate.interpolate_nearest_backward(y, own, factors, exact, channels_last)


def _dropout(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from pyops.triton_kernels import dropout

    dropout.dropout(_empty(*shape, dtype=dtype), _empty(2, dtype=torch.int64), 0.5)


def _fused_dropout(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    kind: int,
    dim: int = -1,
    *,
    from_output: bool = False,
    residual: bool = False,
    needs_bias: bool = True,
) -> None:
    from pyops.triton_kernels import dropout

    x, bias = _empty(*shape, dtype=dtype), _empty(shape[dim], dtype=dtype)
    mask, activation = (_empty(2, dtype=torch.int64), 0.5), (kind, 1.0, 20.0, dim)
    dropout.bias_activation_dropout_forward(x, bias, x if residual else None, *mask, *activation)
    dropout.bias_activation_dropout_backward(x, x, bias, *mask, *activation, from_output, needs_bias)


def _loss(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    kind: int,
    reduction: int = MEAN,
    weight: tuple[int, ...] | None = None,
    pos_weight: tuple[int, ...] | None = None,
    inner: int = 1,
    both: bool = False,
) -> None:
    from pyops.triton_kernels import loss

    x = _empty(*shape, dtype=dtype)
    factors = [None if f is None else _empty(*f, dtype=dtype) for f in (weight, pos_weight)]
    tensors = (x, x, factors[0], inner, factors[1], inner)
    value, divisor = loss.elementwise_loss_forward(*tensors, kind, 0.5, reduction)
    loss.elementwise_loss_backward(value, *tensors, divisor, kind, 0.5, reduction, both)


def _linear(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    kind: int,
    *,
    dropout: bool = False,
    saved_is_output: bool = True,
) -> None:
    from pyops.triton_kernels import linear

    x, w, bias = _empty(m, k, dtype=dtype), _empty(n, k, dtype=dtype), _empty(n, dtype=dtype)
    seed = _empty(2, dtype=torch.int64) if dropout else None
    options = (0.1, kind, 0.0, 0.0)
    y, z = linear.linear_forward(x, w, bias, seed, *options, not saved_is_output)
    saved = None if kind == 0 else y if saved_is_output else z
    linear.linear_backward(y, x, w, saved, seed, *options, saved_is_output, True, True, True)


def _recurrent(kind: int, steps: int, batch: int, inputs: int, hidden: int, dtype: torch.dtype) -> None:
    """The time loops; of the products around them, which gemm's cases have, only the one of forward."""
    from pyops.triton_kernels.recurrent import recurrent

    gates = recurrent._GATES[kind] * hidden
    x, w_ih, w_hh = (
        _empty(*shape, dtype=dtype) for shape in [(steps, batch, inputs), (gates, inputs), (gates, hidden)]
    )
    bias, h = _empty(gates, dtype=dtype), _empty(batch, hidden, dtype=dtype)
    c = h if kind == 2 else None
    y, h_n, c_n, saved, extra = recurrent.recurrent_forward(
        x, w_ih, w_hh, bias, bias, h, c, None, kind, False, True
    )
    recurrent.recurrent_backward(
        y, h_n, c_n if kind == 2 else None, x, w_ih, w_hh, h, c, y, saved, extra, None, kind, False,
        False, False, False, False,
    )  # fmt: skip


def _batch_norm(
    shape: tuple[int, ...], dim: int, dtype: torch.dtype, kind: int = 1, *, residual: bool = False
) -> None:
    from pyops.triton_kernels.batch_norm import batch_norm

    x, vector = _empty(*shape, dtype=dtype), _empty(shape[dim])
    r = x if residual else None
    masked = residual and kind == 1
    forward = (x, vector, vector, r, vector, vector, None, dim, True, 0.1, 1e-5, kind, 0.0, 0.0, masked)
    y, mean, rstd, mask = batch_norm.batch_norm_forward(*forward)
    saved = (x, vector, vector, r if kind > 1 else None, mask if masked else None, mean, rstd)
    batch_norm.batch_norm_backward(y, *saved, None, dim, True, kind, 0.0, 0.0, True, True, residual)


def _conv2d(
    shape: tuple[int, ...],
    out_channels: int,
    kernel: int,
    dtype: torch.dtype,
    channels_last: bool = True,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    kind: int = 1,
    residual: bool = False,
    precision: str = "tf32",
) -> None:
    from pyops.triton_kernels.conv2d import conv2d

    format = torch.channels_last if channels_last else torch.contiguous_format
    x = _empty(*shape, dtype=dtype).to(memory_format=format)
    weight = _empty(out_channels, shape[1] // groups, kernel, kernel, dtype=dtype)
    sizes = [(size + 2 * padding - kernel) // stride + 1 for size in shape[2:]]
    y = _empty(shape[0], out_channels, *sizes, dtype=dtype).to(memory_format=format)
    options = ([stride] * 2, [padding] * 2, [1, 1], groups, kind, 0.0, 0.0)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = precision
    try:
        bias, from_output = _empty(out_channels, dtype=dtype), kind == 1
        conv2d.conv2d_forward(x, weight, bias, y if residual else None, *options, not from_output)
        conv2d.conv2d_backward(y, x, weight, y, *options, from_output, True, True, True, residual)
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def _conv2d_max_pool2d(
    shape: tuple[int, ...],
    out_channels: int,
    kernel: int,
    dtype: torch.dtype,
    channels_last: bool,
    window: int,
    window_stride: int,
    *,
    stride: int = 1,
    kind: int = 1,
) -> None:
    from pyops.triton_kernels.conv2d import conv2d_max_pool2d

    format = torch.channels_last if channels_last else torch.contiguous_format
    x = _empty(*shape, dtype=dtype).to(memory_format=format)
    weight, bias = (
        _empty(out_channels, shape[1], kernel, kernel, dtype=dtype),
        _empty(out_channels, dtype=dtype),
    )
    geometry, activation = ([stride] * 2, [1, 1], [1, 1]), (kind, 0.0, 0.0)
    pool = ([window] * 2, [window_stride] * 2, [0, 0], [1, 1], False)
    keeps_input = kind > 5
    y, argmax, z = conv2d_max_pool2d.conv2d_max_pool2d_forward(
        x, weight, bias, *geometry, 1, *activation, *pool, True, keeps_input
    )
    size = [(side + 2 - kernel) // stride + 1 for side in shape[2:]]
    conv2d_max_pool2d.conv2d_max_pool2d_backward(
        y, argmax, z if keeps_input else y, size, *activation, not keeps_input, *pool, True
    )


CASES: dict[str, Callable[[], None]] = {
    "recurrent-lstm-loop-bfloat16": lambda: _recurrent(2, 3, 64, 128, 128, BFLOAT16),
    "recurrent-gru-loop-float32": lambda: _recurrent(3, 3, 1024, 28, 32, FLOAT),
    "recurrent-lstm-steps-float32": lambda: _recurrent(2, 1, 32, 28, 256, FLOAT),
    "recurrent-relu-odd-float64": lambda: _recurrent(1, 2, 7, 5, 33, DOUBLE),
    "embedding-vocabulary-bfloat16": lambda: _embedding(50257, 768, 8192, BFLOAT16),
    "embedding-characters-float32": lambda: _embedding(28, 256, 1120, FLOAT, True, math.inf),
    "embedding-odd-float64": lambda: _embedding(100, 37, 50, DOUBLE, False, 1.5),
    "interpolate-double-float32": lambda: _interpolate((8, 64, 56, 56), [112, 112], FLOAT, False),
    "interpolate-channels_last-bfloat16": lambda: _interpolate((8, 56, 56, 64), [112, 112], BFLOAT16, True),
    "interpolate-volume-float64": lambda: _interpolate((2, 3, 5, 7, 9), [8, 8, 8], DOUBLE, False),
    "dropout-float32": lambda: _dropout((1024, 1024), FLOAT),
    "dropout-odd-bfloat16": lambda: _dropout((1001, 777), BFLOAT16),
    "dropout-float64": lambda: _dropout((64, 4096), DOUBLE),
    "dropout-bias-relu-float32": lambda: _fused_dropout((256, 4096), FLOAT, 1, from_output=True),
    "dropout-bias-relu-bfloat16": lambda: _fused_dropout((8192, 8192), BFLOAT16, 1, from_output=True),
    "dropout-bias-gelu-residual-bfloat16": lambda: _fused_dropout((4096, 768), BFLOAT16, 8, residual=True),
    "dropout-bias-gelu-odd-float32": lambda: _fused_dropout((4096, 777), FLOAT, 8),
    "dropout-bias-gelu-no_gradient-odd-float32": lambda: _fused_dropout(
        (4096, 777), FLOAT, 8, needs_bias=False
    ),
    "dropout-image-sigmoid-float16": lambda: _fused_dropout((64, 256, 16, 16), HALF, 3, 1),
    "dropout-image-tanh-odd-float64": lambda: _fused_dropout((8, 16, 7, 7), DOUBLE, 4, 1, from_output=True),
    "softmax-many_rows-float16": lambda: _softmax((4096, 100), HALF, False),
    "softmax-one_tile-bfloat16": lambda: _softmax((4096, 16384), BFLOAT16, False),
    "softmax-loop-bfloat16": lambda: _softmax((4096, 50257), BFLOAT16, False),
    "softmax-inner-float32": lambda: _softmax((8, 21, 64, 64), FLOAT, False),
    "log_softmax-one_tile-float32": lambda: _softmax((4096, 1000), FLOAT, True),
    "log_softmax-loop-float64": lambda: _softmax((64, 10000), DOUBLE, True),
    "nll_loss-float32": lambda: _nll_loss((4096, 1000), FLOAT, MEAN, False),
    "nll_loss-inner-weight-bfloat16": lambda: _nll_loss((8, 21, 64, 64), BFLOAT16, NONE, True),
    "nll_loss-many_rows-float64": lambda: _nll_loss((10**8, 10), DOUBLE, SUM, True),
    "max_pool2d-nchw-float32": lambda: _max_pool2d((32, 64, 112, 112), FLOAT, 3, 2, 1, False),
    "max_pool2d-channels_last-bfloat16": lambda: _max_pool2d((32, 112, 112, 64), BFLOAT16, 3, 2, 1, True),
    "max_pool2d-wide-float64": lambda: _max_pool2d((4, 3, 56, 56), DOUBLE, 17, 1, 8, False),
    "avg_pool2d-nchw-float32": lambda: _avg_pool2d((256, 6, 28, 28), FLOAT, 2, False),
    "avg_pool2d-channels_last-float16": lambda: _avg_pool2d((32, 56, 56, 64), HALF, 3, True),
    "adaptive_avg_pool2d-global-float32": lambda: _adaptive_avg_pool2d((32, 512, 7, 7), FLOAT, 1, False),
    "adaptive_avg_pool2d-uneven-float64": lambda: _adaptive_avg_pool2d((4, 30, 31, 64), DOUBLE, 7, True),
    "batch_norm-relu-float32": lambda: _batch_norm((32, 64, 112, 112), 1, FLOAT),
    "batch_norm-residual-relu-channels_last-bfloat16": lambda: _batch_norm(
        (32, 56, 56, 64), 3, BFLOAT16, residual=True
    ),
    "batch_norm-residual-silu-odd-float16": lambda: _batch_norm((33, 65, 7, 7), 1, HALF, 10, residual=True),
    "batch_norm-rows-float32": lambda: _batch_norm((1001, 77), 1, FLOAT, 0),
    "cross_entropy-few_classes-float32": lambda: _cross_entropy((4096, 10), FLOAT),
    "cross_entropy-vocabulary-bfloat16": lambda: _cross_entropy((4096, 128256), BFLOAT16),
    "cross_entropy-inplace-bfloat16": lambda: _cross_entropy((4096, 50257), BFLOAT16, inplace=True),
    "cross_entropy-all_options-bfloat16": lambda: _cross_entropy(
        (4096, 32000), BFLOAT16, NONE, all_options=True
    ),
    "cross_entropy-inner-float16": lambda: _cross_entropy((8, 21, 128, 128), HALF),
    "cross_entropy-inner-all_options-float32": lambda: _cross_entropy(
        (8, 150, 50, 50), FLOAT, SUM, all_options=True
    ),
    "cross_entropy-all_options-float64": lambda: _cross_entropy((64, 10000), DOUBLE, NONE, all_options=True),
    "cross_entropy-probabilities-float32": lambda: _cross_entropy((4096, 1000), FLOAT, probabilities=True),
    "cross_entropy-probabilities-all_options-bfloat16": lambda: _cross_entropy(
        (4096, 32000), BFLOAT16, NONE, probabilities=True, all_options=True
    ),
    "activation-float32": lambda: _activations(
        (2048, 2048),
        FLOAT,
        (1, 0.0, 0.0, True),
        (4, 0.0, 0.0, True),
        (6, 1.0, 20.0, False),
        (8, 0.0, 0.0, False),
    ),
    "activation-bfloat16": lambda: _activations(
        (2048, 2048), BFLOAT16, (3, 0.0, 0.0, True), (5, 0.0, 0.0, False), (9, 0.0, 0.0, False)
    ),
    "activation-odd-float64": lambda: _activations(
        (1001, 7), DOUBLE, (4, 0.0, 0.0, True), (6, 2.0, 20.0, False), (8, 0.0, 0.0, False)
    ),
    "prelu-columns-bfloat16": lambda: _prelu((4096, 4096), 4096, BFLOAT16),
    "prelu-runs-float32": lambda: _prelu((16, 64, 56, 56), 64, FLOAT),
    "prelu-one-slope-float64": lambda: _prelu((1001, 77), 1, DOUBLE),
    "mse_loss-float32": lambda: _loss((4096, 1000), FLOAT, 0, both=True),
    "mse_loss-weight-float64": lambda: _loss((1001, 77), DOUBLE, 0, SUM, weight=(1001, 77)),
    "l1_loss-bfloat16": lambda: _loss((4096, 1000), BFLOAT16, 1),
    "huber_loss-many-float32": lambda: _loss((2**31 + 5,), FLOAT, 2),
    "smooth_l1_loss-none-float16": lambda: _loss((4096, 1000), HALF, 3, NONE),
    "binary_cross_entropy-float32": lambda: _loss((4096, 1000), FLOAT, 4),
    "binary_cross_entropy-factors-bfloat16": lambda: _loss(
        (8, 21, 64, 64), BFLOAT16, 4, weight=(8, 21, 64, 64), pos_weight=(21, 1, 1), inner=4096
    ),
    "binary_cross_entropy-factors-float64": lambda: _loss(
        (64, 1000), DOUBLE, 4, NONE, weight=(1000,), pos_weight=(1000,)
    ),
    "linear-relu-dropout-bfloat16": lambda: _linear(4096, 4096, 4096, BFLOAT16, 1, dropout=True),
    "linear-gelu-bfloat16": lambda: _linear(4096, 4096, 1024, BFLOAT16, 8, saved_is_output=False),
    "linear-tanh-float32": lambda: _linear(256, 257, 784, FLOAT, 4),
    "linear-gelu-float64": lambda: _linear(512, 512, 64, DOUBLE, 8, saved_is_output=False),
    "gemm-nn-bfloat16": lambda: _gemm(4096, 4096, 4096, BFLOAT16),
    "gemm-nt-bfloat16": lambda: _gemm(4096, 32000, 2048, BFLOAT16, "nt"),
    "gemm-tn-accumulate-bfloat16": lambda: _gemm(32000, 2048, 4096, BFLOAT16, "tn", FLOAT, 1.0),
    "gemm-vocabulary-bfloat16": lambda: _gemm(4096, 2048, 50257, BFLOAT16, "nn", FLOAT),
    "gemm-odd-float16": lambda: _gemm(1001, 777, 333, HALF, "tt", HALF, 0.5),
    "gemm-small-bfloat16": lambda: _gemm(64, 64, 128, BFLOAT16, "nt", FLOAT),
    "gemm-nt-float32": lambda: _gemm(4096, 4096, 4096, FLOAT, "nt", beta=1.0),
    "gemm-small-float32": lambda: _gemm(64, 100, 64, FLOAT),
    "gemm-nt-tf32": lambda: _gemm(4096, 4096, 4096, FLOAT, "nt", tf32=True),
    "gemm-tn-float64": lambda: _gemm(512, 512, 512, DOUBLE, "tn", beta=1.0),
    "conv2d-channels_last-bfloat16": lambda: _conv2d((64, 256, 56, 56), 256, 3, BFLOAT16, padding=1),
    "conv2d-stem-float16": lambda: _conv2d((64, 3, 224, 224), 96, 11, HALF, False, stride=4, padding=1),
    "conv2d-strided-residual-bfloat16": lambda: _conv2d(
        (64, 128, 56, 56), 256, 3, BFLOAT16, stride=2, padding=1, residual=True
    ),
    "conv2d-nchw-float16": lambda: _conv2d((32, 64, 112, 112), 64, 3, HALF, False, padding=1),
    "conv2d-one_by_one-nchw-tf32": lambda: _conv2d((128, 96, 54, 54), 96, 1, FLOAT, False),
    "conv2d-few-nchw-tf32": lambda: _conv2d((256, 6, 14, 14), 16, 5, FLOAT, False, kind=3),
    "conv2d-float32": lambda: _conv2d((32, 128, 28, 28), 128, 3, FLOAT, padding=1, precision="ieee"),
    "conv2d-grouped-gelu-bfloat16": lambda: _conv2d((64, 128, 14, 14), 128, 3, BFLOAT16, groups=4, kind=8),
    "conv2d-depthwise-bfloat16": lambda: _conv2d((64, 256, 28, 28), 256, 3, BFLOAT16, padding=1, groups=256),
    "conv2d-depthwise-strided-nchw-float32": lambda: _conv2d(
        (64, 256, 28, 28), 256, 3, FLOAT, False, stride=2, padding=1, groups=256
    ),
    "conv2d-float64": lambda: _conv2d((4, 32, 14, 14), 64, 3, DOUBLE, stride=2, padding=1),
    "conv2d_max_pool2d-channels_last-bfloat16": lambda: _conv2d_max_pool2d(
        (64, 64, 112, 112), 64, 3, BFLOAT16, True, 2, 2
    ),
    "conv2d_max_pool2d-few-nchw-tf32": lambda: _conv2d_max_pool2d((256, 1, 28, 28), 6, 5, FLOAT, False, 2, 2),
    "conv2d_max_pool2d-overlapping-float16": lambda: _conv2d_max_pool2d(
        (64, 3, 224, 224), 96, 11, HALF, False, 3, 2, stride=4
    ),
    "conv2d_max_pool2d-silu-float32": lambda: _conv2d_max_pool2d(
        (32, 64, 56, 56), 128, 3, FLOAT, True, 2, 2, kind=10
    ),
    "conv2d_max_pool2d-float64": lambda: _conv2d_max_pool2d((4, 32, 14, 14), 64, 3, DOUBLE, False, 2, 2),
}
