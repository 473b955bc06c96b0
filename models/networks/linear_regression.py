"""Linear regression: y = W x + b, fitted by the mean squared error.

The squared error is the negative log-likelihood of normally distributed noise; its minimum has a closed form,
and gradient descent finds it as well, which carries over to every network that follows.

Source: course notes, "Linear regression"; Zhang et al., Dive into Deep Learning, chapter 3.
Shapes: rows [N, features] -> values [N, outputs].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

from torch import nn

import pyops.nn

from ..recipe import Recipe
from ..registry import register
from ..tasks import REGRESSION
from .tools.initialization import init_normal


@register(
    "linear_regression",
    notes="000 001 002 004 Linear regression",
    recipe=Recipe(num_epochs=3, lr=0.03, batch_size=10),
    task=REGRESSION,
    data="linear",
)
def linear_regression(
    input_shape: Sequence[int], num_outputs: int, *, layers: ModuleType = pyops.nn
) -> nn.Module:
    """Linear map of rows [N, *input_shape]; weights N(0, 0.01^2), bias zero."""
    net = layers.Sequential(layers.Flatten(), layers.Linear(math.prod(input_shape), num_outputs))
    return init_normal(net, std=0.01)
