"""Triton backend: every op of pyops as Triton kernels, registered as ``pyops_triton::<op>``.

Importing this package registers the ops. :mod:`pyops.backends` does so the first time Triton is asked
for, so that ``import pyops`` needs no Triton. With ``TRITON_INTERPRET=1`` in the environment the same
kernels run in Triton's interpreter, on CPU tensors.
"""

from . import (
    activation,
    avg_pool2d,
    batch_norm,
    conv2d,
    conv2d_max_pool2d,
    cross_entropy,
    dropout,
    embedding,
    gemm,
    interpolate,
    linear,
    loss,
    max_pool2d,
    nll_loss,
    prelu,
    recurrent,
    softmax,
)

__all__ = [
    "activation",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "conv2d_max_pool2d",
    "cross_entropy",
    "dropout",
    "embedding",
    "gemm",
    "interpolate",
    "linear",
    "loss",
    "max_pool2d",
    "nll_loss",
    "prelu",
    "recurrent",
    "softmax",
]
