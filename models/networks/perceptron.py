"""The perceptron: the sign of w x + b tells two classes apart.

Rosenblatt's rule moves the weights by y x at every sample on the wrong side, until there is none; if a line
can separate the classes, it ends. No line separates the corners of XOR (at most three of the four get right),
which a network with one hidden layer does: `pyops train mlp --data xor`.

Source: course notes, "Perceptron"; Rosenblatt, The perceptron, 1958; Minsky and Papert, Perceptrons, 1969.
Shapes: rows [N, features] -> scores [N, 1]; class 1 where the score is positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

from torch import nn

import pyops.nn

from ..recipe import Recipe
from ..registry import register
from ..tasks import PERCEPTRON


@register(
    "perceptron",
    notes="000 002 004 Perceptron",
    recipe=Recipe(num_epochs=20, lr=1.0, batch_size=1),
    task=PERCEPTRON,
    data="xor",
)
def perceptron(
    input_shape: Sequence[int], num_outputs: int = 1, *, layers: ModuleType = pyops.nn
) -> nn.Module:
    """One score for rows [N, *input_shape]; all weights start from zero, as Rosenblatt's do."""
    net = layers.Sequential(layers.Flatten(), layers.Linear(math.prod(input_shape), num_outputs))
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net
