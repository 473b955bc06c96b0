"""Networks by name, each with its task and the hyper-parameters it is trained with by default."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import nn

from .errors import NetworkError, first_line, unknown_name
from .recipe import Recipe
from .tasks import CLASSIFICATION, Task


@dataclass(frozen=True)
class Network:
    """A registered network.

    ``build(input_shape, num_outputs, layers=..., **options)`` returns the module, freshly initialised from
    torch's global random generator. ``recipe`` is the one of the course notes, ``recipes`` holds those tuned
    for a particular data set. ``data`` is the data set it is trained on by default, ``data_of_files`` the one
    that is read when a data root is given without the name of a data set. ``notes`` is its section of the
    course notes: the numbers of the sets that have it, and the subject.
    """

    name: str
    build: Callable[..., nn.Module]
    recipe: Recipe
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    task: Task = CLASSIFICATION
    data: str = "digits"
    data_of_files: str | None = None
    notes: str = ""

    def recipe_for(self, data: str) -> Recipe:
        """Default hyper-parameters on the data set named ``data``."""
        return self.recipes.get(data, self.recipe)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the builder's own arguments, such as ``width``."""
        return tuple(self.defaults)

    @property
    def defaults(self) -> dict[str, Any]:
        """What :attr:`options` are where they are not given."""
        parameters = inspect.signature(self.build).parameters.values()
        own = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "layers"]
        return {p.name: None if p.default is p.empty else p.default for p in own}

    def make(
        self, input_shape: Sequence[int], num_outputs: int, layers: ModuleType, options: Mapping[str, Any]
    ) -> nn.Module:
        """The network, built of the layer library ``layers``.

        Raises:
            NetworkError: it does not take such inputs, or has no such option or value of one.
        """
        self.check_options(options)
        try:
            return self.build(input_shape, num_outputs, layers=layers, **options)
        except NetworkError:
            raise
        except (TypeError, ValueError) as error:  # a layer refuses the value of an option
            raise NetworkError(f"{self.name}: {first_line(error)}") from None

    def check_options(self, options: Iterable[str]) -> None:
        """Raises NetworkError for a name that is not in :attr:`options`."""
        for name in options:
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise NetworkError(f"{self.name} has no option {name!r}; its options: {known}")


_networks: dict[str, Network] = {}


def register(
    name: str,
    *,
    recipe: Recipe,
    task: Task = CLASSIFICATION,
    data: str = "digits",
    data_of_files: str | None = None,
    notes: str = "",
    **recipes: Recipe,
) -> Callable[[Callable], Callable]:
    """Decorator: make a network's builder known as ``name``; further keywords are recipes by data set."""

    def decorate(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if name in _networks:
            raise ValueError(f"register: network {name!r} is already registered")
        _networks[name] = Network(name, build, recipe, recipes, task, data, data_of_files, notes)
        return build

    return decorate


def network_names() -> list[str]:
    """Names of all registered networks, sorted."""
    return sorted(_networks)


def get_network(name: str) -> Network:
    """The network registered as ``name``, or that ``module:function`` builds (:func:`imported_network`).

    Raises:
        NetworkError: (a ValueError) no such network; the message suggests the nearest names.
    """
    if ":" in name:
        return imported_network(name)
    if name not in _networks:
        raise NetworkError(unknown_name("network", name, _networks))
    return _networks[name]


#: Of networks that are imported: moderate on most data.
_RECIPE = Recipe(num_epochs=10, lr=0.001, batch_size=64, optimizer="adam")


def imported_network(name: str) -> Network:
    """The network whose builder is called ``name``, ``module:function``, found from the working directory.

    It is called as those of this package are, ``function(input_shape, num_outputs, **options)``, and returns
    a module of torch's or of pyops' layers; torch's are converted. Where it takes ``layers``, it is given
    the library. Its recipe and its task are the attributes ``recipe`` and ``task`` of the function, if any.

    Raises:
        NetworkError: there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise NetworkError(f"network {name!r} cannot be imported: {first_line(error)}") from None
    if not callable(function):
        raise NetworkError(f"network {name!r} is no function")

    @functools.wraps(function)
    def build(input_shape: Sequence[int], num_outputs: int, **options: Any) -> nn.Module:
        if "layers" not in inspect.signature(function).parameters:
            options.pop("layers", None)
        net = function(input_shape, num_outputs, **options)
        if not isinstance(net, nn.Module):
            raise NetworkError(f"{name} returned {type(net).__name__}, and no module")
        return net

    recipe = getattr(function, "recipe", _RECIPE)
    return Network(name, build, recipe, task=getattr(function, "task", CLASSIFICATION))


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
