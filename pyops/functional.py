"""The public functions: names, arguments and defaults as in :mod:`torch.nn.functional`."""

from .ops.avg_pool2d import adaptive_avg_pool2d, avg_pool2d
from .ops.cross_entropy import cross_entropy
from .ops.linear_cross_entropy import linear_cross_entropy
from .ops.max_pool2d import max_pool2d
from .ops.nll_loss import nll_loss
from .ops.softmax import log_softmax, softmax

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "cross_entropy",
    "linear_cross_entropy",
    "log_softmax",
    "max_pool2d",
    "nll_loss",
    "softmax",
]
