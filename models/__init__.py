"""Classic networks composed from pyops, with their data and training.

A network is written once with its layer library as a parameter: ``layers=pyops.nn`` (the default)
or ``layers=torch.nn``, its torch twin. ``get_network("mlp").build((1, 28, 28), 10)`` builds one by
name; :mod:`pyops.models.train` trains it.
"""

from .errors import DataError, ModelsError, NetworkError, TrainError
from .mlp import mlp
from .registry import Network, Recipe, get_network, layer_library, network_names, register
from .softmax_regression import softmax_regression

__all__ = [
    "DataError",
    "ModelsError",
    "Network",
    "NetworkError",
    "Recipe",
    "TrainError",
    "get_network",
    "layer_library",
    "mlp",
    "network_names",
    "register",
    "softmax_regression",
]
