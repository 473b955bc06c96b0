"""Multilayer perceptron: one hidden layer with ReLU between two linear layers.

    h = max(0, W1 x + b1),    o = W2 h + b2

Without the non-linearity the two layers would compose to a single linear map, that is, to softmax
regression. The network returns the logits o; softmax and cross-entropy are one operation, the loss.

Source: course notes, "Multilayer perceptron"; Zhang et al., Dive into Deep Learning, chapter 5.
Shapes: images [N, C, H, W] -> hidden [N, num_hiddens] -> logits [N, num_classes]; the notes have
784-256-10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

from torch import nn

import pyops.nn

from .initialization import init_normal
from .registry import Recipe, register


@register(
    "mlp",
    recipe=Recipe(num_epochs=10, lr=0.1, batch_size=256),
    digits=Recipe(num_epochs=100, lr=1.0, batch_size=256),
)
def mlp(
    image_shape: Sequence[int],
    num_classes: int,
    *,
    num_hiddens: int = 256,
    layers: ModuleType = pyops.nn,
) -> nn.Module:
    """Perceptron with one hidden ReLU layer on images [N, *image_shape].

    All weights start from N(0, 0.01^2), biases at zero.
    """
    num_inputs = math.prod(image_shape)
    net = layers.Sequential(
        layers.Flatten(),
        layers.Linear(num_inputs, num_hiddens),
        layers.ReLU(),
        layers.Linear(num_hiddens, num_classes),
    )
    return init_normal(net, std=0.01)
