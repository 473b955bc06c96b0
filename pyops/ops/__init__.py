"""The ops: one module each, with schema, fake kernel, autograd and public function."""

from . import (
    activation,
    avg_pool2d,
    conv2d,
    cross_entropy,
    dropout,
    elementwise_loss,
    embedding,
    gemm,
    interpolate,
    linear,
    linear_cross_entropy,
    loss,
    max_pool2d,
    nll_loss,
    prelu,
    softmax,
)

__all__ = [
    "activation",
    "avg_pool2d",
    "conv2d",
    "cross_entropy",
    "dropout",
    "elementwise_loss",
    "embedding",
    "gemm",
    "interpolate",
    "linear",
    "linear_cross_entropy",
    "loss",
    "max_pool2d",
    "nll_loss",
    "prelu",
    "softmax",
]
