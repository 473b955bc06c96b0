"""The public functions: names, arguments and defaults as in :mod:`torch.nn.functional`."""

from .ops.conv2d import conv2d
from .ops.cross_entropy import cross_entropy
from .ops.linear_cross_entropy import linear_cross_entropy
from .ops.nll_loss import nll_loss
from .ops.softmax import log_softmax, softmax

__all__ = ["conv2d", "cross_entropy", "linear_cross_entropy", "log_softmax", "nll_loss", "softmax"]
