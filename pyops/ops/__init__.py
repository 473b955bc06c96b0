"""The ops: one module each, with schema, fake kernel, autograd and public function."""

from . import (
    activation,
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
    nll_loss,
    prelu,
    softmax,
)

__all__ = [
    "activation",
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
    "nll_loss",
    "prelu",
    "softmax",
]
