"""Multilayer perceptrons: hidden layers with ReLU between linear layers.

    h = max(0, W1 x + b1),    o = W2 h + b2

Without the non-linearity the two layers would compose to a single linear map, that is, to softmax
regression. The network returns the logits o; softmax and cross-entropy are one operation, the loss.

Several hidden layers, such as the 784-200-200-10 of the notes, are
``--option num_hidden_layers=2 --option num_hiddens=200``.

With dropout after each hidden layer the network cannot rely on single units, and overfits less:
784-256-256-10 with 0.2 after the first and 0.5 after the second.

Source: course notes, "Multilayer perceptron"; Zhang et al., Dive into Deep Learning, chapter 5.
Shapes: images [N, C, H, W] -> hidden [N, num_hiddens] -> logits [N, num_classes]; the notes have
784-256-10.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import ModuleType

from torch import nn

import pyops.nn

from ..errors import NetworkError
from ..recipe import Recipe
from ..registry import register
from .tools.initialization import RULES, init_normal


@register(
    "mlp",
    notes="000 001 003 004 Multilayer perceptron",
    recipe=Recipe(num_epochs=10, lr=0.1, batch_size=256),
    digits=Recipe(num_epochs=100, lr=1.0, batch_size=256),
    xor=Recipe(num_epochs=40, lr=0.02, batch_size=4, optimizer="adam"),
)
def mlp(
    image_shape: Sequence[int],
    num_classes: int,
    *,
    num_hiddens: int = 256,
    num_hidden_layers: int = 1,
    layers: ModuleType = pyops.nn,
) -> nn.Module:
    """Perceptron with hidden ReLU layers of ``num_hiddens`` units on images [N, *image_shape].

    One hidden layer starts from weights of N(0, 0.01^2), as in the notes. Through more of them a signal would
    fade away: each then has the deviation sqrt(2 / inputs) of He. Biases start at zero.

    Raises:
        NetworkError: fewer than one hidden layer.
    """
    if num_hidden_layers < 1:
        raise NetworkError(f"mlp: num_hidden_layers must be at least 1, got {num_hidden_layers}")
    sizes = [math.prod(image_shape), *[num_hiddens] * num_hidden_layers]
    hidden = [
        layer
        for inputs, outputs in itertools.pairwise(sizes)
        for layer in (layers.Linear(inputs, outputs), layers.ReLU())
    ]
    net = layers.Sequential(layers.Flatten(), *hidden, layers.Linear(num_hiddens, num_classes))
    return init_normal(net, std=0.01) if num_hidden_layers == 1 else RULES["he"](net)


@register(
    "mlp_dropout",
    notes="003 004 Dropout",
    recipe=Recipe(num_epochs=10, lr=0.5, batch_size=256),
    digits=Recipe(num_epochs=60, lr=0.5, batch_size=128),
)
def mlp_dropout(
    image_shape: Sequence[int],
    num_classes: int,
    *,
    num_hiddens: int = 256,
    dropout: float | None = None,
    layers: ModuleType = pyops.nn,
) -> nn.Module:
    """Perceptron with two hidden ReLU layers, each followed by dropout, on images [N, *image_shape].

    ``dropout`` replaces both probabilities, 0.2 and 0.5. All weights start from N(0, 0.01^2), biases at zero.
    """
    num_inputs = math.prod(image_shape)
    first, second = (0.2, 0.5) if dropout is None else (dropout, dropout)
    net = layers.Sequential(
        layers.Flatten(),
        layers.Linear(num_inputs, num_hiddens),
        layers.ReLU(),
        layers.Dropout(first),
        layers.Linear(num_hiddens, num_hiddens),
        layers.ReLU(),
        layers.Dropout(second),
        layers.Linear(num_hiddens, num_classes),
    )
    return init_normal(net, std=0.01)
