"""Classic networks composed from pyops, with their data and training.

A network is written once with its layer library as a parameter: ``layers=pyops.nn`` (the default)
or ``layers=torch.nn``, its torch twin. ``get_network("mlp").build((1, 28, 28), 10)`` builds one by
name, as does ``mlp((1, 28, 28), 10)``; ``train(TrainConfig("mlp"))`` trains it.
"""

from typing import TYPE_CHECKING, Any

from . import networks
from .errors import DataError, ModelsError, NetworkError, TrainError
from .recipe import Recipe
from .registry import Network, get_network, layer_library, network_names, register

if TYPE_CHECKING:
    from .training.config import TrainConfig
    from .training.train import train

#: The builders of all networks, by the networks' names.
_builders = {name: get_network(name).build for name in network_names()}
globals().update(_builders)


def __getattr__(name: str) -> Any:
    """Training asks for the extra `train`, which a network alone does not."""
    if name == "TrainConfig":
        from .training.config import TrainConfig

        return TrainConfig
    if name == "train":
        from .training.train import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DataError",
    "ModelsError",
    "Network",
    "NetworkError",
    "Recipe",
    "TrainConfig",
    "TrainError",
    "get_network",
    "layer_library",
    "network_names",
    "networks",
    "register",
    "train",
    *_builders,
]
