"""LeNet with batch normalisation after every layer but the last.

    conv 6 5x5 pad 2 - bn - sigmoid - avgpool 2 - conv 16 5x5 - bn - sigmoid - avgpool 2
    - 120 - bn - sigmoid - 84 - bn - sigmoid - classes

The inputs of every sigmoid have mean 0 and variance 1 over the batch (until the network learns better ones),
where its slope is large. That is what makes a large learning rate safe: plain LeNet needs thousands of steps
to leave the plateau of its sigmoids, this one learns from the first.

Source: course notes, "LeNet" and "Batch normalisation"; Ioffe and Szegedy, Batch normalization, 2015; Zhang
et al., Dive into Deep Learning, section 8.5.
Shapes: images [N, C, H, W], H and W at least 12 -> logits [N, num_classes]; the notes have [N, 1, 28, 28].
In training, N is at least 2: one sample has no variance.
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
    "batchnorm_lenet",
    notes="002 004 Batch normalisation",
    recipe=Recipe(num_epochs=10, lr=1.0, batch_size=256, resize=28),
    digits=Recipe(num_epochs=10, lr=0.005, batch_size=32, optimizer="adam", resize=28),
)
def batchnorm_lenet(
    image_shape: Sequence[int], num_classes: int, *, layers: ModuleType = pyops.nn
) -> nn.Module:
    """LeNet with batch normalisation on images [N, *image_shape]; all weights start from Xavier's uniform
    distribution.

    Raises:
        NetworkError: the images are too small.
    """
    height, width = feature_map("batchnorm_lenet", image_shape, _WINDOWS)
    net = layers.Sequential(
        layers.Conv2d(image_shape[0], 6, kernel_size=5, padding=2),
        layers.BatchNorm2d(6),
        layers.Sigmoid(),
        layers.AvgPool2d(kernel_size=2, stride=2),
        layers.Conv2d(6, 16, kernel_size=5),
        layers.BatchNorm2d(16),
        layers.Sigmoid(),
        layers.AvgPool2d(kernel_size=2, stride=2),
        layers.Flatten(),
        layers.Linear(16 * height * width, 120),
        layers.BatchNorm1d(120),
        layers.Sigmoid(),
        layers.Linear(120, 84),
        layers.BatchNorm1d(84),
        layers.Sigmoid(),
        layers.Linear(84, num_classes),
    )
    return init_xavier(net)
