"""Softmax regression: one linear layer from the flattened image to one logit per class.

    o = W x + b,    P(class j | x) = exp(o_j) / sum_k exp(o_k)

The network returns the logits o; the softmax belongs to the loss, which evaluates it together with
the logarithm (log-sum-exp) and so never overflows. The parameters maximise the likelihood of the
labels, that is, they minimise the cross-entropy.

Source: course notes, "Softmax regression"; Zhang et al., Dive into Deep Learning, chapter 4.
Shapes: images [N, C, H, W] -> logits [N, num_classes]; the notes have 28 x 28 -> 784 -> 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

from torch import nn

import pyops.nn

from ..recipe import Recipe
from ..registry import register
from .tools.initialization import init_normal


@register(
    "softmax_regression",
    notes="000 001 002 Softmax regression",
    recipe=Recipe(num_epochs=10, lr=0.1, batch_size=256),
    digits=Recipe(num_epochs=30, lr=0.5, batch_size=32),
)
def softmax_regression(
    image_shape: Sequence[int], num_classes: int, *, layers: ModuleType = pyops.nn
) -> nn.Module:
    """Linear classifier of images [N, *image_shape]; weights N(0, 0.01^2), bias zero."""
    num_inputs = math.prod(image_shape)
    return init_normal(layers.Sequential(layers.Flatten(), layers.Linear(num_inputs, num_classes)), std=0.01)
