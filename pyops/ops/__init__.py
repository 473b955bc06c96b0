"""The ops: one module each, with schema, fake kernel, autograd and public function."""

from . import (
    activation,
    cross_entropy,
    dropout,
    gemm,
    linear,
    linear_cross_entropy,
    nll_loss,
    prelu,
    softmax,
)

__all__ = [
    "activation",
    "cross_entropy",
    "dropout",
    "gemm",
    "linear",
    "linear_cross_entropy",
    "nll_loss",
    "prelu",
    "softmax",
]
