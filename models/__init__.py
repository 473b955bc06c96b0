"""Classic networks composed from pyops, with their data and training.

A network is written once with its layer library as a parameter: ``layers=pyops.nn`` (the default)
or ``layers=torch.nn``, its torch twin. ``get_network("mlp").build((1, 28, 28), 10)`` builds one by
name; :mod:`pyops.models.training.train` trains it.
"""

from .errors import DataError, ModelsError, NetworkError, TrainError
from .networks.alexnet import alexnet
from .networks.batchnorm_lenet import batchnorm_lenet
from .networks.googlenet import googlenet
from .networks.house_price import house_price
from .networks.language_model import gru, lstm, rnn
from .networks.lenet import lenet
from .networks.linear_regression import linear_regression
from .networks.logistic_regression import logistic_regression
from .networks.mlp import mlp, mlp_dropout
from .networks.nin import nin
from .networks.perceptron import perceptron
from .networks.resnet import resnet18, resnet34, resnet50, resnet56
from .networks.softmax_regression import softmax_regression
from .networks.vgg import vgg11, vgg13, vgg16, vgg19
from .recipe import Recipe
from .registry import Network, get_network, layer_library, network_names, register

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
