"""What networks there are: sizes, where the notes have them, and what they are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..data.dataset import Dataset
from ..data.load import load_data
from ..registry import Network, get_network, layer_library, network_names

#: Sections of the course notes, by network: the numbers of the sets that have it, and its subject.
SECTIONS = {
    "alexnet": "002 004 AlexNet",
    "batchnorm_lenet": "002 004 Batch normalisation",
    "googlenet": "002 004 GoogLeNet",
    "gru": "002 Recurrent networks",
    "house_price": "001 003 Predicting house prices",
    "lenet": "002 004 LeNet",
    "linear_regression": "000 001 002 004 Linear regression",
    "logistic_regression": "004 Logistic regression",
    "lstm": "002 003 LSTM",
    "mlp": "000 001 003 004 Multilayer perceptron",
    "mlp_dropout": "003 004 Dropout",
    "nin": "002 Network in network",
    "perceptron": "000 002 004 Perceptron",
    "resnet18": "004 ResNet",
    "resnet34": "004 ResNet",
    "resnet50": "004 ResNet",
    "resnet56": "004 ResNet",
    "rnn": "004 Recurrent networks",
    "softmax_regression": "000 001 002 Softmax regression",
    "vgg11": "002 004 VGG",
    "vgg13": "002 004 VGG",
    "vgg16": "002 004 VGG",
    "vgg19": "002 004 VGG",
}

_FASHION_SIDE, _FASHION_CLASSES = 28, 10


@dataclass(frozen=True)
class Entry:
    """A network as its default recipe trains it: ``input_shape`` is what it sees of its default data.

    ``notes_parameters`` is the number of parameters that a network of images has in the notes, where it is
    trained on Fashion-MNIST and not made narrower; None for the others.
    """

    name: str
    parameters: int
    notes_parameters: int | None
    task: str
    data: str
    input_shape: tuple[int, ...]
    notes: str


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
        SECTIONS.get(name, ""),
    )


def _parameters(
    network: Network, input_shape: tuple[int, ...], outputs: int, options: Mapping[str, Any]
) -> int:
    with torch.device("meta"):  # shapes without values: no memory, no time
        net = network.make(input_shape, outputs, layer_library("pyops"), options)
    return sum(parameter.numel() for parameter in net.parameters())
