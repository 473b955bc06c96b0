"""The ops as plain torch formulas: the reference backend.

It serves devices and dtypes that no kernel serves, gradients that no kernel computes, and double
backward. Written to be read: one line per term of the formula, in float32 (float64 for float64).
"""

from .conv2d import conv2d, conv2d_gradient
from .cross_entropy import cross_entropy_with_lse
from .linear_cross_entropy import linear_cross_entropy
from .nll_loss import nll_loss
from .softmax import softmax

__all__ = [
    "conv2d",
    "conv2d_gradient",
    "cross_entropy_with_lse",
    "linear_cross_entropy",
    "nll_loss",
    "softmax",
]
