# Written by .ci/stubs.py: `make stubs`.

from typing import Any

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
from .conv2d import Conv2d as Conv2d
from .conv2d import LazyConv2d as LazyConv2d
from .dropout import Dropout as Dropout
from .embedding import Embedding as Embedding
from .interpolate import Upsample as Upsample
from .interpolate import UpsamplingNearest2d as UpsamplingNearest2d
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

__all__: list[str]

def __getattr__(name: str) -> Any: ...
