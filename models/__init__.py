"""Classic networks composed from pyops, with their data and training.

A network is written once with its layer library as a parameter: ``layers=pyops.nn`` (the default)
or ``layers=torch.nn``, its torch twin. ``get_network("mlp").build((1, 28, 28), 10)`` builds one by
name, as does ``mlp((1, 28, 28), 10)``; :mod:`pyops.models.training.train` trains it.
"""

from . import networks
from .errors import DataError, ModelsError, NetworkError, TrainError
from .recipe import Recipe
from .registry import Network, get_network, layer_library, network_names, register

#: The builders of all networks, by the networks' names.
_builders = {name: get_network(name).build for name in network_names()}
globals().update(_builders)

__all__ = [
    "DataError",
    "ModelsError",
    "Network",
    "NetworkError",
    "Recipe",
    "TrainError",
    "get_network",
    "layer_library",
    "network_names",
    "networks",
    "register",
    *_builders,
]
