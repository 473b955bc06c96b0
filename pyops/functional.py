"""The public functions: names, arguments and defaults as in :mod:`torch.nn.functional`."""

from .ops.activation import elu, gelu, hardswish, leaky_relu, relu, selu, sigmoid, silu, softplus, tanh
from .ops.cross_entropy import cross_entropy
from .ops.dropout import dropout
from .ops.linear import linear
from .ops.linear_cross_entropy import linear_cross_entropy
from .ops.nll_loss import nll_loss
from .ops.prelu import prelu
from .ops.softmax import log_softmax, softmax

__all__ = [
    "cross_entropy",
    "dropout",
    "elu",
    "gelu",
    "hardswish",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "nll_loss",
    "prelu",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]
