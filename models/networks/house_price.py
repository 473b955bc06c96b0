"""House prices: a linear map of prepared features, judged by the errors of the logarithm.

An error of 10 000 matters more for a cheap house than for an expensive one: what counts is the root mean
square of log prediction - log price. Training itself minimises the squared error of the prices; Adam's steps
hardly depend on how large its gradients are, and a learning rate of 5 suits weights that are worth thousands.

Source: course notes, "Predicting house prices"; Zhang et al., Dive into Deep Learning, chapter 5; De Cock,
Ames, Iowa, 2011, on Kaggle as "House Prices: Advanced Regression Techniques".
Shapes: rows [N, features] -> prices [N, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

from torch import nn

import pyops.nn

from ..recipe import Recipe
from ..registry import register
from ..tasks import PRICES


@register(
    "house_price",
    notes="001 003 Predicting house prices",
    recipe=Recipe(num_epochs=150, lr=5.0, batch_size=64, optimizer="adam", weight_decay=0.08),
    task=PRICES,
    data="diabetes",
    data_of_files="house_prices",
    diabetes=Recipe(num_epochs=60, lr=1.0, batch_size=64, optimizer="adam", weight_decay=0.08),
)
def house_price(input_shape: Sequence[int], num_outputs: int, *, layers: ModuleType = pyops.nn) -> nn.Module:
    """Linear map of rows [N, *input_shape], initialised as torch does."""
    return layers.Sequential(layers.Flatten(), layers.Linear(math.prod(input_shape), num_outputs))
