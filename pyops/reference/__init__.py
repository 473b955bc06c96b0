"""The ops as plain torch formulas: the reference backend.

It serves devices and dtypes that no kernel serves, gradients that no kernel computes, and double
backward. Written to be read: one line per term of the formula, in float32 (float64 for float64).
"""

from .cross_entropy import cross_entropy_with_lse
from .linear_cross_entropy import linear_cross_entropy
from .nll_loss import nll_loss
from .pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from .softmax import softmax

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "cross_entropy_with_lse",
    "linear_cross_entropy",
    "max_pool2d",
    "nll_loss",
    "softmax",
]
