"""NiN, network in network: 1x1 convolutions are linear layers at every pixel, and there are no others.

A block is a k x k convolution and two 1x1 ones, each with ReLU. Blocks and max poolings alternate; the last
block has a channel per class, whose mean over all positions is the class's logit. Averaging has no
parameters, where the linear layers of AlexNet and VGG hold most of theirs and overfit.

Source: course notes, "Network in network"; Lin et al., Network in network, 2013; Zhang et al., Dive into Deep
Learning, section 8.3.
Shapes: images [N, C, H, W], H and W at least 67 -> logits [N, num_classes]; the notes have 224 x 224.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import nn

import pyops.nn

from ..recipe import Recipe
from ..registry import register
from .tools.initialization import init_he
from .tools.shapes import Window, divided, feature_map

_POOL = Window(3, stride=2)
_WINDOWS = (Window(11, stride=4), _POOL, _POOL, _POOL)  # the others keep the size


@register(
    "nin",
    notes="002 Network in network",
    recipe=Recipe(num_epochs=10, lr=0.1, batch_size=128, resize=224),
    digits=Recipe(num_epochs=12, lr=0.001, batch_size=32, optimizer="adam", resize=67, options={"width": 2}),
)
def nin(
    image_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 1,
    dropout: float = 0.5,
    layers: ModuleType = pyops.nn,
) -> nn.Module:
    """NiN on images [N, *image_shape]; all weights start from He's normal distribution.

    ``width`` divides the number of channels of all blocks but the last.

    Raises:
        NetworkError: the images are too small, or the width is not positive.
    """
    feature_map("nin", image_shape, _WINDOWS)
    first, second, third = (divided("nin", n, width) for n in (96, 256, 384))
    net = layers.Sequential(
        _block(image_shape[0], first, layers, kernel_size=11, stride=4),
        layers.MaxPool2d(kernel_size=3, stride=2),
        _block(first, second, layers, kernel_size=5, padding=2),
        layers.MaxPool2d(kernel_size=3, stride=2),
        _block(second, third, layers, kernel_size=3, padding=1),
        layers.MaxPool2d(kernel_size=3, stride=2),
        layers.Dropout(dropout),
        _block(third, num_classes, layers, kernel_size=3, padding=1),
        layers.AdaptiveAvgPool2d((1, 1)),
        layers.Flatten(),
    )
    return init_he(net)


def _block(in_channels: int, out_channels: int, layers: ModuleType, **window: int) -> nn.Module:
    """A convolution with ``window`` and two 1x1 ones, each with ReLU."""
    return layers.Sequential(
        layers.Conv2d(in_channels, out_channels, **window),
        layers.ReLU(),
        layers.Conv2d(out_channels, out_channels, kernel_size=1),
        layers.ReLU(),
        layers.Conv2d(out_channels, out_channels, kernel_size=1),
        layers.ReLU(),
    )
