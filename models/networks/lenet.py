"""LeNet: two convolutions find features, three linear layers tell the classes apart.

    conv 6 5x5 pad 2 - sigmoid - avgpool 2 - conv 16 5x5 - sigmoid - avgpool 2 - 120 - 84 - classes

A convolution shares its weights over the positions of an image (translation invariance) and looks at a
small window only (locality); pooling makes the result less sensitive to where exactly a feature lies. The
last layer of the original, a Gaussian one, is linear here: its outputs are the logits.

Source: course notes, "LeNet"; LeCun et al., Gradient-based learning applied to document recognition, 1998.
Shapes: images [N, C, H, W], H and W at least 12 -> logits [N, num_classes]; the notes have [N, 1, 28, 28].
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import nn

import pyops.nn

from ..recipe import Recipe
from ..registry import register
from .tools.initialization import init_xavier
from .tools.shapes import Window, feature_map

_WINDOWS = (Window(5, padding=2), Window(2, stride=2), Window(5), Window(2, stride=2))


@register(
    "lenet",
    notes="002 004 LeNet",
    recipe=Recipe(num_epochs=10, lr=0.9, batch_size=256, resize=28),
    # SGD needs thousands of steps to leave the plateau of its sigmoids; the digits have 45 an epoch.
    digits=Recipe(num_epochs=30, lr=0.005, batch_size=32, optimizer="adam", resize=28),
)
def lenet(image_shape: Sequence[int], num_classes: int, *, layers: ModuleType = pyops.nn) -> nn.Module:
    """LeNet on images [N, *image_shape]; all weights start from Xavier's uniform distribution.

    Raises:
        NetworkError: the images are too small.
    """
    height, width = feature_map("lenet", image_shape, _WINDOWS)
    net = layers.Sequential(
        layers.Conv2d(image_shape[0], 6, kernel_size=5, padding=2),
        layers.Sigmoid(),
        layers.AvgPool2d(kernel_size=2, stride=2),
        layers.Conv2d(6, 16, kernel_size=5),
        layers.Sigmoid(),
        layers.AvgPool2d(kernel_size=2, stride=2),
        layers.Flatten(),
        layers.Linear(16 * height * width, 120),
        layers.Sigmoid(),
        layers.Linear(120, 84),
        layers.Sigmoid(),
        layers.Linear(84, num_classes),
    )
    return init_xavier(net)
