# Written by .ci/stubs.py: `make stubs`. What has no kernel here is what torch 2.13 has.

from typing import Any, Literal, overload

from torch import Tensor
from torch.nn.functional import GRID_SAMPLE_INTERPOLATION_MODES as GRID_SAMPLE_INTERPOLATION_MODES
from torch.nn.functional import GRID_SAMPLE_PADDING_MODES as GRID_SAMPLE_PADDING_MODES
from torch.nn.functional import ScalingType as ScalingType
from torch.nn.functional import SwizzleType as SwizzleType
from torch.nn.functional import adaptive_avg_pool1d as adaptive_avg_pool1d
from torch.nn.functional import adaptive_avg_pool3d as adaptive_avg_pool3d
from torch.nn.functional import adaptive_max_pool1d as adaptive_max_pool1d
from torch.nn.functional import adaptive_max_pool1d_with_indices as adaptive_max_pool1d_with_indices
from torch.nn.functional import adaptive_max_pool2d as adaptive_max_pool2d
from torch.nn.functional import adaptive_max_pool2d_with_indices as adaptive_max_pool2d_with_indices
from torch.nn.functional import adaptive_max_pool3d as adaptive_max_pool3d
from torch.nn.functional import adaptive_max_pool3d_with_indices as adaptive_max_pool3d_with_indices
from torch.nn.functional import affine_grid as affine_grid
from torch.nn.functional import alpha_dropout as alpha_dropout
from torch.nn.functional import assert_int_or_pair as assert_int_or_pair
from torch.nn.functional import avg_pool1d as avg_pool1d
from torch.nn.functional import avg_pool3d as avg_pool3d
from torch.nn.functional import bilinear as bilinear
from torch.nn.functional import binary_cross_entropy as binary_cross_entropy
from torch.nn.functional import celu as celu
from torch.nn.functional import celu_ as celu_
from torch.nn.functional import channel_shuffle as channel_shuffle
from torch.nn.functional import conv3d as conv3d
from torch.nn.functional import conv_tbc as conv_tbc
from torch.nn.functional import conv_transpose1d as conv_transpose1d
from torch.nn.functional import conv_transpose2d as conv_transpose2d
from torch.nn.functional import conv_transpose3d as conv_transpose3d
from torch.nn.functional import cosine_embedding_loss as cosine_embedding_loss
from torch.nn.functional import cosine_similarity as cosine_similarity
from torch.nn.functional import ctc_loss as ctc_loss
from torch.nn.functional import dropout1d as dropout1d
from torch.nn.functional import dropout2d as dropout2d
from torch.nn.functional import dropout3d as dropout3d
from torch.nn.functional import elu_ as elu_
from torch.nn.functional import embedding_bag as embedding_bag
from torch.nn.functional import feature_alpha_dropout as feature_alpha_dropout
from torch.nn.functional import fold as fold
from torch.nn.functional import fractional_max_pool2d as fractional_max_pool2d
from torch.nn.functional import fractional_max_pool2d_with_indices as fractional_max_pool2d_with_indices
from torch.nn.functional import fractional_max_pool3d as fractional_max_pool3d
from torch.nn.functional import fractional_max_pool3d_with_indices as fractional_max_pool3d_with_indices
from torch.nn.functional import gaussian_nll_loss as gaussian_nll_loss
from torch.nn.functional import glu as glu
from torch.nn.functional import grid_sample as grid_sample
from torch.nn.functional import grouped_mm as grouped_mm
from torch.nn.functional import gumbel_softmax as gumbel_softmax
from torch.nn.functional import hardshrink as hardshrink
from torch.nn.functional import hardtanh_ as hardtanh_
from torch.nn.functional import hinge_embedding_loss as hinge_embedding_loss
from torch.nn.functional import kl_div as kl_div
from torch.nn.functional import leaky_relu_ as leaky_relu_
from torch.nn.functional import local_response_norm as local_response_norm
from torch.nn.functional import logsigmoid as logsigmoid
from torch.nn.functional import lp_pool1d as lp_pool1d
from torch.nn.functional import lp_pool2d as lp_pool2d
from torch.nn.functional import lp_pool3d as lp_pool3d
from torch.nn.functional import margin_ranking_loss as margin_ranking_loss
from torch.nn.functional import max_pool1d as max_pool1d
from torch.nn.functional import max_pool1d_with_indices as max_pool1d_with_indices
from torch.nn.functional import max_pool2d_with_indices as max_pool2d_with_indices
from torch.nn.functional import max_pool3d as max_pool3d
from torch.nn.functional import max_pool3d_with_indices as max_pool3d_with_indices
from torch.nn.functional import max_unpool1d as max_unpool1d
from torch.nn.functional import max_unpool2d as max_unpool2d
from torch.nn.functional import max_unpool3d as max_unpool3d
from torch.nn.functional import mish as mish
from torch.nn.functional import multi_head_attention_forward as multi_head_attention_forward
from torch.nn.functional import multi_margin_loss as multi_margin_loss
from torch.nn.functional import multilabel_margin_loss as multilabel_margin_loss
from torch.nn.functional import multilabel_soft_margin_loss as multilabel_soft_margin_loss
from torch.nn.functional import native_channel_shuffle as native_channel_shuffle
from torch.nn.functional import normalize as normalize
from torch.nn.functional import one_hot as one_hot
from torch.nn.functional import pad as pad
from torch.nn.functional import pairwise_distance as pairwise_distance
from torch.nn.functional import pdist as pdist
from torch.nn.functional import pixel_shuffle as pixel_shuffle
from torch.nn.functional import pixel_unshuffle as pixel_unshuffle
from torch.nn.functional import poisson_nll_loss as poisson_nll_loss
from torch.nn.functional import relu_ as relu_
from torch.nn.functional import rms_norm as rms_norm
from torch.nn.functional import rrelu as rrelu
from torch.nn.functional import rrelu_ as rrelu_
from torch.nn.functional import scaled_dot_product_attention as scaled_dot_product_attention
from torch.nn.functional import scaled_mm as scaled_mm
from torch.nn.functional import selu_ as selu_
from torch.nn.functional import soft_margin_loss as soft_margin_loss
from torch.nn.functional import softmin as softmin
from torch.nn.functional import softshrink as softshrink
from torch.nn.functional import softsign as softsign
from torch.nn.functional import tanhshrink as tanhshrink
from torch.nn.functional import threshold as threshold
from torch.nn.functional import triplet_margin_loss as triplet_margin_loss
from torch.nn.functional import triplet_margin_with_distance_loss as triplet_margin_with_distance_loss
from torch.nn.functional import unfold as unfold
from torch.nn.functional import upsample as upsample
from torch.nn.functional import upsample_bilinear as upsample_bilinear
from torch.nn.functional import upsample_nearest as upsample_nearest

from .ops.activation import elu as elu
from .ops.activation import gelu as gelu
from .ops.activation import hardsigmoid as hardsigmoid
from .ops.activation import hardswish as hardswish
from .ops.activation import hardtanh as hardtanh
from .ops.activation import leaky_relu as leaky_relu
from .ops.activation import relu as relu
from .ops.activation import relu6 as relu6
from .ops.activation import selu as selu
from .ops.activation import sigmoid as sigmoid
from .ops.activation import silu as silu
from .ops.activation import softplus as softplus
from .ops.activation import tanh as tanh
from .ops.avg_pool2d import adaptive_avg_pool2d as adaptive_avg_pool2d
from .ops.avg_pool2d import avg_pool2d as avg_pool2d
from .ops.batch_norm import batch_norm as batch_norm
from .ops.conv1d import conv1d as conv1d
from .ops.conv2d import conv2d as conv2d
from .ops.conv2d_max_pool2d import conv2d_max_pool2d as conv2d_max_pool2d
from .ops.dropout import dropout as dropout
from .ops.embedding import embedding as embedding
from .ops.interpolate import interpolate as interpolate
from .ops.layer_norm import group_norm as group_norm
from .ops.layer_norm import instance_norm as instance_norm
from .ops.layer_norm import layer_norm as layer_norm
from .ops.linear import linear as linear
from .ops.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from .ops.loss import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from .ops.loss import huber_loss as huber_loss
from .ops.loss import l1_loss as l1_loss
from .ops.loss import mse_loss as mse_loss
from .ops.loss import smooth_l1_loss as smooth_l1_loss
from .ops.nll_loss import nll_loss as nll_loss
from .ops.prelu import prelu as prelu
from .ops.recurrent_stack import gru as gru
from .ops.recurrent_stack import gru_cell as gru_cell
from .ops.recurrent_stack import lstm as lstm
from .ops.recurrent_stack import lstm_cell as lstm_cell
from .ops.recurrent_stack import rnn_relu as rnn_relu
from .ops.recurrent_stack import rnn_relu_cell as rnn_relu_cell
from .ops.recurrent_stack import rnn_tanh as rnn_tanh
from .ops.recurrent_stack import rnn_tanh_cell as rnn_tanh_cell
from .ops.softmax import log_softmax as log_softmax
from .ops.softmax import softmax as softmax
from .ops.tools.windows import IntOrPair

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv2d",
    "conv2d_max_pool2d",
    "cross_entropy",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "group_norm",
    "gru",
    "gru_cell",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "l1_loss",
    "layer_norm",
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
    "relu6",
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

@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = ...,
    size_average: bool | None = ...,
    ignore_index: int = ...,
    reduce: bool | None = ...,
    reduction: str = ...,
    label_smoothing: float = ...,
    *,
    z_loss: float = ...,
    sample_weight: Tensor | None = ...,
    return_lse: Literal[False] = ...,
    inplace_backward: bool = ...,
    process_group: Any = ...,
) -> Tensor: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = ...,
    size_average: bool | None = ...,
    ignore_index: int = ...,
    reduce: bool | None = ...,
    reduction: str = ...,
    label_smoothing: float = ...,
    *,
    z_loss: float = ...,
    sample_weight: Tensor | None = ...,
    return_lse: Literal[True],
    inplace_backward: bool = ...,
    process_group: Any = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = ...,
    size_average: bool | None = ...,
    ignore_index: int = ...,
    reduce: bool | None = ...,
    reduction: str = ...,
    label_smoothing: float = ...,
    *,
    z_loss: float = ...,
    sample_weight: Tensor | None = ...,
    return_lse: bool = ...,
    inplace_backward: bool = ...,
    process_group: Any = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
@overload
def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = ...,
    padding: IntOrPair = ...,
    dilation: IntOrPair = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[False] = ...,
) -> Tensor: ...
@overload
def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = ...,
    padding: IntOrPair = ...,
    dilation: IntOrPair = ...,
    ceil_mode: bool = ...,
    *,
    return_indices: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = ...,
    padding: IntOrPair = ...,
    dilation: IntOrPair = ...,
    ceil_mode: bool = ...,
    return_indices: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
