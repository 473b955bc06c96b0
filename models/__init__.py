"""Classic networks composed from pyops, with their data and training.

A network is written once with its layer library as a parameter: ``layers=pyops.nn`` (the default)
or ``layers=torch.nn``, its torch twin. ``get_network("mlp").build((1, 28, 28), 10)`` builds one by
name; :mod:`pyops.models.train` trains it.
"""

from .alexnet import alexnet
from .batchnorm_lenet import batchnorm_lenet
from .errors import DataError, ModelsError, NetworkError, TrainError
from .googlenet import googlenet
from .house_price import house_price
from .language_model import gru, lstm, rnn
from .lenet import lenet
from .linear_regression import linear_regression
from .logistic_regression import logistic_regression
from .mlp import mlp, mlp_dropout
from .nin import nin
from .perceptron import perceptron
from .recipe import Recipe
from .registry import Network, get_network, layer_library, network_names, register
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
    "house_price",
    "layer_library",
    "lenet",
    "linear_regression",
    "logistic_regression",
    "lstm",
    "mlp",
    "mlp_dropout",
    "network_names",
    "nin",
    "perceptron",
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
