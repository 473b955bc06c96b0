"""Logistic regression: P(class 1 | x) = sigmoid(w x + b), fitted by binary cross-entropy.

The network returns the logit w x + b; sigmoid and cross-entropy are one operation, the loss, which neither
overflows nor loses digits. Softmax regression with two classes is the same model with one redundant weight
vector.

Source: course notes, "Logistic regression".
Shapes: rows [N, features] -> logits [N, 1]; class 1 where the logit is positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

from torch import nn

import pyops.nn

from ..recipe import Recipe
from ..registry import register
from ..tasks import LOGISTIC
from .tools.initialization import init_normal


@register(
    "logistic_regression",
    notes="004 Logistic regression",
    recipe=Recipe(num_epochs=30, lr=0.1, batch_size=32),
    task=LOGISTIC,
    data="breast_cancer",
)
def logistic_regression(
    input_shape: Sequence[int], num_outputs: int = 1, *, layers: ModuleType = pyops.nn
) -> nn.Module:
    """One logit for rows [N, *input_shape]; weights N(0, 0.01^2), bias zero."""
    net = layers.Sequential(layers.Flatten(), layers.Linear(math.prod(input_shape), num_outputs))
    return init_normal(net, std=0.01)
