"""What networks there are: sizes, where the notes have them, and what they are trained on.

``python -m pyops.models.commands.catalog`` writes it down in ``models/catalog.json`` (`make stubs`), which
`pyops list` shows without building a network.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..data.dataset import Dataset
from ..data.load import data_names, load_data
from ..examples import example_names
from ..recipe import Recipe
from ..registry import Network, get_network, layer_library, network_names

FILE = Path(__file__).parents[1] / "catalog.json"
#: What the recipe of the notes is called among the others.
NOTES = "the notes"
_FASHION_SIDE, _FASHION_CLASSES = 28, 10


@dataclass(frozen=True)
class Entry:
    """A network as its default recipe trains it: ``input_shape`` is what it sees of its default data.

    ``notes_parameters`` is the number of parameters that a network of images has in the notes, where it is
    trained on Fashion-MNIST and not made narrower; None for the others. ``notes`` says where it is there,
    ``about`` what it is. ``options`` are its own with their defaults. ``recipes`` are by data set, that of
    the notes first; each has what differs from the default in one of them.
    ``losses`` fit, the first by default.
    """

    name: str
    parameters: int
    notes_parameters: int | None
    task: str
    data: str
    input_shape: tuple[int, ...]
    notes: str
    about: str
    losses: tuple[str, ...]
    options: dict[str, Any]
    recipes: dict[str, dict[str, Any]]


def catalog() -> list[Entry]:
    """All networks, by name, with the number of parameters each has on its default data.

    Raises:
        DataError: scikit-learn is missing.
    """
    names = network_names()
    data = {name: load_data(name) for name in {get_network(name).data for name in names}}
    return [_entry(name, data[get_network(name).data]) for name in names]


def _entry(name: str, data: Dataset) -> Entry:
    network = get_network(name)
    recipe = network.recipe_for(network.data)
    data = data.with_side(recipe.resize)
    outputs = network.task.num_outputs(name, data)
    in_the_notes = None
    if data.kind == "images":
        side = network.recipe.resize or _FASHION_SIDE
        in_the_notes = _parameters(network, (1, side, side), _FASHION_CLASSES, network.recipe.options)
    return Entry(
        name,
        _parameters(network, data.input_shape, outputs, recipe.options),
        in_the_notes,
        network.task.name,
        network.data,
        data.input_shape,
        network.notes,
        _about(network),
        network.task.losses,
        network.defaults,
        _recipes(network),
    )


def _about(network: Network) -> str:
    """The first paragraph of the module that builds the network."""
    build = getattr(network.build, "func", network.build)  # of a partial function
    text = inspect.getdoc(sys.modules[build.__module__]) or ""
    return " ".join(text.partition("\n\n")[0].split())


def _recipes(network: Network) -> dict[str, dict[str, Any]]:
    recipes = {NOTES: network.recipe, **network.recipes}
    defaults = {field.name: field.default for field in fields(Recipe)} | {"options": {}}
    names = [
        name
        for name, default in defaults.items()
        if name == "optimizer" or any(getattr(recipe, name) != default for recipe in recipes.values())
    ]
    found = {data: {name: getattr(recipe, name) for name in names} for data, recipe in recipes.items()}
    for entries in found.values():
        entries |= {"options": dict(entries["options"])} if "options" in entries else {}
    return found


def _parameters(
    network: Network, input_shape: tuple[int, ...], outputs: int, options: Mapping[str, Any]
) -> int:
    with torch.device("meta"):  # shapes without values: no memory, no time
        net = network.make(input_shape, outputs, layer_library("pyops"), options)
    return sum(parameter.numel() for parameter in net.parameters())


def listing() -> dict[str, Any]:
    """What `pyops list` shows: all networks, data sets and examples."""
    networks = [asdict(entry) for entry in catalog()]
    return {"networks": networks, "data": data_names(), "examples": example_names()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(listing(), indent=1) + "\n", encoding="utf-8")
