# Written by .ci/stubs.py: `make stubs`. What has no kernel here is what torch 2.13 has.

from torch.nn import attention as attention
from torch.nn import init as init
from torch.nn import modules as modules
from torch.nn import parallel as parallel
from torch.nn import parameter as parameter
from torch.nn import utils as utils
from torch.nn.modules import CELU as CELU
from torch.nn.modules import GLU as GLU
from torch.nn.modules import AdaptiveAvgPool1d as AdaptiveAvgPool1d
from torch.nn.modules import AdaptiveAvgPool3d as AdaptiveAvgPool3d
from torch.nn.modules import AdaptiveLogSoftmaxWithLoss as AdaptiveLogSoftmaxWithLoss
from torch.nn.modules import AdaptiveMaxPool1d as AdaptiveMaxPool1d
from torch.nn.modules import AdaptiveMaxPool2d as AdaptiveMaxPool2d
from torch.nn.modules import AdaptiveMaxPool3d as AdaptiveMaxPool3d
from torch.nn.modules import AlphaDropout as AlphaDropout
from torch.nn.modules import AvgPool1d as AvgPool1d
from torch.nn.modules import AvgPool3d as AvgPool3d
from torch.nn.modules import BatchNorm3d as BatchNorm3d
from torch.nn.modules import BCELoss as BCELoss
from torch.nn.modules import Bilinear as Bilinear
from torch.nn.modules import ChannelShuffle as ChannelShuffle
from torch.nn.modules import CircularPad1d as CircularPad1d
from torch.nn.modules import CircularPad2d as CircularPad2d
from torch.nn.modules import CircularPad3d as CircularPad3d
from torch.nn.modules import ConstantPad1d as ConstantPad1d
from torch.nn.modules import ConstantPad2d as ConstantPad2d
from torch.nn.modules import ConstantPad3d as ConstantPad3d
from torch.nn.modules import Container as Container
from torch.nn.modules import Conv3d as Conv3d
from torch.nn.modules import ConvTranspose1d as ConvTranspose1d
from torch.nn.modules import ConvTranspose2d as ConvTranspose2d
from torch.nn.modules import ConvTranspose3d as ConvTranspose3d
from torch.nn.modules import CosineEmbeddingLoss as CosineEmbeddingLoss
from torch.nn.modules import CosineSimilarity as CosineSimilarity
from torch.nn.modules import CrossMapLRN2d as CrossMapLRN2d
from torch.nn.modules import CTCLoss as CTCLoss
from torch.nn.modules import Dropout1d as Dropout1d
from torch.nn.modules import Dropout2d as Dropout2d
from torch.nn.modules import Dropout3d as Dropout3d
from torch.nn.modules import EmbeddingBag as EmbeddingBag
from torch.nn.modules import FeatureAlphaDropout as FeatureAlphaDropout
from torch.nn.modules import Flatten as Flatten
from torch.nn.modules import Fold as Fold
from torch.nn.modules import FractionalMaxPool2d as FractionalMaxPool2d
from torch.nn.modules import FractionalMaxPool3d as FractionalMaxPool3d
from torch.nn.modules import GaussianNLLLoss as GaussianNLLLoss
from torch.nn.modules import Hardshrink as Hardshrink
from torch.nn.modules import HingeEmbeddingLoss as HingeEmbeddingLoss
from torch.nn.modules import Identity as Identity
from torch.nn.modules import InstanceNorm3d as InstanceNorm3d
from torch.nn.modules import KLDivLoss as KLDivLoss
from torch.nn.modules import LazyBatchNorm3d as LazyBatchNorm3d
from torch.nn.modules import LazyConv3d as LazyConv3d
from torch.nn.modules import LazyConvTranspose1d as LazyConvTranspose1d
from torch.nn.modules import LazyConvTranspose2d as LazyConvTranspose2d
from torch.nn.modules import LazyConvTranspose3d as LazyConvTranspose3d
from torch.nn.modules import LazyInstanceNorm1d as LazyInstanceNorm1d
from torch.nn.modules import LazyInstanceNorm2d as LazyInstanceNorm2d
from torch.nn.modules import LazyInstanceNorm3d as LazyInstanceNorm3d
from torch.nn.modules import LinearCrossEntropyOptions as LinearCrossEntropyOptions
from torch.nn.modules import LocalResponseNorm as LocalResponseNorm
from torch.nn.modules import LogSigmoid as LogSigmoid
from torch.nn.modules import LPPool1d as LPPool1d
from torch.nn.modules import LPPool2d as LPPool2d
from torch.nn.modules import LPPool3d as LPPool3d
from torch.nn.modules import MarginRankingLoss as MarginRankingLoss
from torch.nn.modules import MaxPool1d as MaxPool1d
from torch.nn.modules import MaxPool3d as MaxPool3d
from torch.nn.modules import MaxUnpool1d as MaxUnpool1d
from torch.nn.modules import MaxUnpool2d as MaxUnpool2d
from torch.nn.modules import MaxUnpool3d as MaxUnpool3d
from torch.nn.modules import Mish as Mish
from torch.nn.modules import Module as Module
from torch.nn.modules import ModuleDict as ModuleDict
from torch.nn.modules import ModuleList as ModuleList
from torch.nn.modules import MultiheadAttention as MultiheadAttention
from torch.nn.modules import MultiLabelMarginLoss as MultiLabelMarginLoss
from torch.nn.modules import MultiLabelSoftMarginLoss as MultiLabelSoftMarginLoss
from torch.nn.modules import MultiMarginLoss as MultiMarginLoss
from torch.nn.modules import NLLLoss2d as NLLLoss2d
from torch.nn.modules import PairwiseDistance as PairwiseDistance
from torch.nn.modules import ParameterDict as ParameterDict
from torch.nn.modules import ParameterList as ParameterList
from torch.nn.modules import PixelShuffle as PixelShuffle
from torch.nn.modules import PixelUnshuffle as PixelUnshuffle
from torch.nn.modules import PoissonNLLLoss as PoissonNLLLoss
from torch.nn.modules import ReflectionPad1d as ReflectionPad1d
from torch.nn.modules import ReflectionPad2d as ReflectionPad2d
from torch.nn.modules import ReflectionPad3d as ReflectionPad3d
from torch.nn.modules import ReplicationPad1d as ReplicationPad1d
from torch.nn.modules import ReplicationPad2d as ReplicationPad2d
from torch.nn.modules import ReplicationPad3d as ReplicationPad3d
from torch.nn.modules import RMSNorm as RMSNorm
from torch.nn.modules import RNNBase as RNNBase
from torch.nn.modules import RNNCellBase as RNNCellBase
from torch.nn.modules import RReLU as RReLU
from torch.nn.modules import Sequential as Sequential
from torch.nn.modules import SoftMarginLoss as SoftMarginLoss
from torch.nn.modules import Softmax2d as Softmax2d
from torch.nn.modules import Softmin as Softmin
from torch.nn.modules import Softshrink as Softshrink
from torch.nn.modules import Softsign as Softsign
from torch.nn.modules import Tanhshrink as Tanhshrink
from torch.nn.modules import Threshold as Threshold
from torch.nn.modules import Transformer as Transformer
from torch.nn.modules import TransformerDecoder as TransformerDecoder
from torch.nn.modules import TransformerDecoderLayer as TransformerDecoderLayer
from torch.nn.modules import TransformerEncoder as TransformerEncoder
from torch.nn.modules import TransformerEncoderLayer as TransformerEncoderLayer
from torch.nn.modules import TripletMarginLoss as TripletMarginLoss
from torch.nn.modules import TripletMarginWithDistanceLoss as TripletMarginWithDistanceLoss
from torch.nn.modules import Unflatten as Unflatten
from torch.nn.modules import Unfold as Unfold
from torch.nn.modules import UpsamplingBilinear2d as UpsamplingBilinear2d
from torch.nn.modules import ZeroPad1d as ZeroPad1d
from torch.nn.modules import ZeroPad2d as ZeroPad2d
from torch.nn.modules import ZeroPad3d as ZeroPad3d
from torch.nn.parallel import DataParallel as DataParallel
from torch.nn.parameter import Buffer as Buffer
from torch.nn.parameter import Parameter as Parameter
from torch.nn.parameter import UninitializedBuffer as UninitializedBuffer
from torch.nn.parameter import UninitializedParameter as UninitializedParameter

from .. import functional as functional
from .activation import ELU as ELU
from .activation import GELU as GELU
from .activation import SELU as SELU
from .activation import Hardsigmoid as Hardsigmoid
from .activation import Hardswish as Hardswish
from .activation import Hardtanh as Hardtanh
from .activation import LeakyReLU as LeakyReLU
from .activation import ReLU as ReLU
from .activation import ReLU6 as ReLU6
from .activation import Sigmoid as Sigmoid
from .activation import SiLU as SiLU
from .activation import Softplus as Softplus
from .activation import Tanh as Tanh
from .batch_norm import BatchNorm1d as BatchNorm1d
from .batch_norm import BatchNorm2d as BatchNorm2d
from .batch_norm import LazyBatchNorm1d as LazyBatchNorm1d
from .batch_norm import LazyBatchNorm2d as LazyBatchNorm2d
from .batch_norm import SyncBatchNorm as SyncBatchNorm
from .conv1d import Conv1d as Conv1d
from .conv1d import LazyConv1d as LazyConv1d
from .conv2d import Conv2d as Conv2d
from .conv2d import LazyConv2d as LazyConv2d
from .dropout import Dropout as Dropout
from .embedding import Embedding as Embedding
from .interpolate import Upsample as Upsample
from .interpolate import UpsamplingNearest2d as UpsamplingNearest2d
from .layer_norm import GroupNorm as GroupNorm
from .layer_norm import InstanceNorm1d as InstanceNorm1d
from .layer_norm import InstanceNorm2d as InstanceNorm2d
from .layer_norm import LayerNorm as LayerNorm
from .linear import LazyLinear as LazyLinear
from .linear import Linear as Linear
from .loss import BCEWithLogitsLoss as BCEWithLogitsLoss
from .loss import CrossEntropyLoss as CrossEntropyLoss
from .loss import HuberLoss as HuberLoss
from .loss import L1Loss as L1Loss
from .loss import LinearCrossEntropyLoss as LinearCrossEntropyLoss
from .loss import MSELoss as MSELoss
from .loss import NLLLoss as NLLLoss
from .loss import SmoothL1Loss as SmoothL1Loss
from .pooling import AdaptiveAvgPool2d as AdaptiveAvgPool2d
from .pooling import AvgPool2d as AvgPool2d
from .pooling import MaxPool2d as MaxPool2d
from .prelu import PReLU as PReLU
from .recurrent import GRU as GRU
from .recurrent import LSTM as LSTM
from .recurrent import RNN as RNN
from .recurrent import GRUCell as GRUCell
from .recurrent import LSTMCell as LSTMCell
from .recurrent import RNNCell as RNNCell
from .softmax import LogSoftmax as LogSoftmax
from .softmax import Softmax as Softmax

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "SELU",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "GRUCell",
    "GroupNorm",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "HuberLoss",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "L1Loss",
    "LSTMCell",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyLinear",
    "LeakyReLU",
    "Linear",
    "LinearCrossEntropyLoss",
    "LogSoftmax",
    "MSELoss",
    "MaxPool2d",
    "NLLLoss",
    "PReLU",
    "RNNCell",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "SyncBatchNorm",
    "Tanh",
    "Upsample",
    "UpsamplingNearest2d",
]
