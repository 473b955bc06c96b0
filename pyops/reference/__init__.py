"""The ops as plain torch formulas: the reference backend.

It serves devices and dtypes that no kernel serves, gradients that no kernel computes, and double
backward. Written to be read: one line per term of the formula, in float32 (float64 for float64).
"""

from .activation import activation, activation_gradient
from .batch_norm import batch_norm, update_running
from .conv2d import conv2d, conv2d_gradient
from .conv2d_max_pool2d import conv2d_max_pool2d
from .cross_entropy import cross_entropy_with_lse
from .dropout import bias_activation_dropout, bias_activation_dropout_gradient, dropout
from .embedding import embedding
from .interpolate import interpolate_nearest
from .linear import linear
from .linear_cross_entropy import linear_cross_entropy
from .loss import elementwise_loss
from .nll_loss import nll_loss
from .pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from .prelu import prelu_gradient
from .recurrent import recurrent
from .softmax import softmax

__all__ = [
    "activation",
    "activation_gradient",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "bias_activation_dropout",
    "bias_activation_dropout_gradient",
    "conv2d",
    "conv2d_gradient",
    "conv2d_max_pool2d",
    "cross_entropy_with_lse",
    "dropout",
    "elementwise_loss",
    "embedding",
    "interpolate_nearest",
    "linear",
    "linear_cross_entropy",
    "max_pool2d",
    "nll_loss",
    "prelu_gradient",
    "recurrent",
    "softmax",
    "update_running",
]
