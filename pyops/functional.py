"""The public functions: names, arguments and defaults as in :mod:`torch.nn.functional`."""

from .ops.activation import elu, gelu, hardswish, leaky_relu, relu, selu, sigmoid, silu, softplus, tanh
from .ops.avg_pool2d import adaptive_avg_pool2d, avg_pool2d
from .ops.batch_norm import batch_norm
from .ops.conv2d import conv2d
from .ops.conv2d_max_pool2d import conv2d_max_pool2d
from .ops.cross_entropy import cross_entropy
from .ops.dropout import dropout
from .ops.embedding import embedding
from .ops.interpolate import interpolate
from .ops.linear import linear
from .ops.linear_cross_entropy import linear_cross_entropy
from .ops.loss import binary_cross_entropy_with_logits, huber_loss, l1_loss, mse_loss, smooth_l1_loss
from .ops.max_pool2d import max_pool2d
from .ops.nll_loss import nll_loss
from .ops.prelu import prelu
from .ops.recurrent_stack import (
    gru,
    gru_cell,
    lstm,
    lstm_cell,
    rnn_relu,
    rnn_relu_cell,
    rnn_tanh,
    rnn_tanh_cell,
)
from .ops.softmax import log_softmax, softmax

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "conv2d",
    "conv2d_max_pool2d",
    "cross_entropy",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "gru",
    "gru_cell",
    "hardswish",
    "huber_loss",
    "interpolate",
    "l1_loss",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "lstm",
    "lstm_cell",
    "max_pool2d",
    "mse_loss",
    "nll_loss",
    "prelu",
    "relu",
    "rnn_relu",
    "rnn_relu_cell",
    "rnn_tanh",
    "rnn_tanh_cell",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "tanh",
]
