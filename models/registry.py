"""Networks by name, each with the hyper-parameters it is trained with by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

from torch import nn

from .errors import NetworkError, unknown_name


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of minibatch SGD."""

    num_epochs: int
    lr: float
    batch_size: int


@dataclass(frozen=True)
class Network:
    """A registered network.

    ``build(image_shape, num_classes, layers=...)`` returns the module, freshly initialised from
    torch's global random generator. ``recipe`` is the one of the course notes, ``recipes`` holds
    those tuned for a particular data set.
    """

    name: str
    build: Callable[..., nn.Module]
    recipe: Recipe
    recipes: Mapping[str, Recipe] = field(default_factory=dict)

    def recipe_for(self, data: str) -> Recipe:
        """Default hyper-parameters on the data set named ``data``."""
        return self.recipes.get(data, self.recipe)


_networks: dict[str, Network] = {}


def register(name: str, *, recipe: Recipe, **recipes: Recipe) -> Callable[[Callable], Callable]:
    """Decorator: make a network's builder known as ``name``; keywords are recipes by data set."""

    def decorate(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if name in _networks:
            raise ValueError(f"register: network {name!r} is already registered")
        _networks[name] = Network(name, build, recipe, recipes)
        return build

    return decorate


def network_names() -> list[str]:
    """Names of all registered networks, sorted."""
    return sorted(_networks)


def get_network(name: str) -> Network:
    """The network registered as ``name``.

    Raises:
        NetworkError: (a ValueError) no such network; the message suggests the nearest names.
    """
    if name not in _networks:
        raise NetworkError(unknown_name("network", name, _networks))
    return _networks[name]


def layer_library(name: str) -> ModuleType:
    """The layer library called ``name``: ``"pyops"`` (:mod:`pyops.nn`) or ``"torch"``.

    Raises:
        NetworkError: (a ValueError) another name.
    """
    if name == "torch":
        return nn
    if name == "pyops":
        import pyops.nn

        return pyops.nn
    raise NetworkError(unknown_name("layer library", name, ("pyops", "torch")))
