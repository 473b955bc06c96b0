"""Classic networks composed from pyops, with their data and training.

A network is written once with its layer library as a parameter: ``layers=pyops.nn`` (the default)
or ``layers=torch.nn``, its torch twin. ``get_network("mlp").build((1, 28, 28), 10)`` builds one by
name; :mod:`pyops.models.train` trains it.
"""

from .alexnet import alexnet
from .batchnorm_lenet import batchnorm_lenet
from .errors import DataError, ModelsError, NetworkError, TrainError
from .googlenet import googlenet
from .language_model import gru, lstm, rnn
from .lenet import lenet
from .mlp import mlp
from .nin import nin
from .registry import Network, Recipe, get_network, layer_library, network_names, register
from .resnet import resnet18, resnet34, resnet50, resnet56
from .softmax_regression import softmax_regression
from .vgg import vgg11, vgg13, vgg16, vgg19

__all__ = [
    "DataError",
    "ModelsError",
    "Network",
    "NetworkError",
    "Recipe",
    "TrainError",
    "alexnet",
    "batchnorm_lenet",
    "get_network",
    "googlenet",
    "gru",
    "layer_library",
    "lenet",
    "lstm",
    "mlp",
    "network_names",
    "nin",
    "register",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet56",
    "rnn",
    "softmax_regression",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
]
