"""AlexNet: a larger and deeper LeNet, with ReLU, max pooling and dropout.

    conv 96 11x11 s4 - pool - conv 256 5x5 - pool - conv 384 3x3 - conv 384 3x3 - conv 256 3x3 - pool
    - 4096 - dropout - 4096 - dropout - classes        (every pool: maximum, 3x3, stride 2)

ReLU keeps its gradient where sigmoid saturates; dropout regularises the two linear layers, which hold most
of the parameters. The two halves that the original split over two GPUs are one here.

Source: course notes, "AlexNet"; Krizhevsky et al., ImageNet classification with deep convolutional neural
networks, 2012; Zhang et al., Dive into Deep Learning, section 8.1.
Shapes: images [N, C, H, W], H and W at least 65 -> logits [N, num_classes]; the notes have 224 x 224.
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
_WINDOWS = (Window(11, stride=4, padding=1), _POOL, _POOL, _POOL)  # the others keep the size


@register(
    "alexnet",
    notes="002 004 AlexNet",
    recipe=Recipe(num_epochs=10, lr=0.01, batch_size=128, resize=224),
    digits=Recipe(num_epochs=10, lr=0.001, batch_size=32, optimizer="adam", resize=65, options={"width": 4}),
)
def alexnet(
    image_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 1,
    dropout: float = 0.5,
    layers: ModuleType = pyops.nn,
) -> nn.Module:
    """AlexNet on images [N, *image_shape]; all weights start from He's normal distribution.

    ``width`` divides the number of channels and of hidden units.

    Raises:
        NetworkError: the images are too small, or the width is not positive.
    """
    rows, columns = feature_map("alexnet", image_shape, _WINDOWS)
    first, second, third, hidden = (divided("alexnet", n, width) for n in (96, 256, 384, 4096))
    net = layers.Sequential(
        layers.Conv2d(image_shape[0], first, kernel_size=11, stride=4, padding=1),
        layers.ReLU(),
        layers.MaxPool2d(kernel_size=3, stride=2),
        layers.Conv2d(first, second, kernel_size=5, padding=2),
        layers.ReLU(),
        layers.MaxPool2d(kernel_size=3, stride=2),
        layers.Conv2d(second, third, kernel_size=3, padding=1),
        layers.ReLU(),
        layers.Conv2d(third, third, kernel_size=3, padding=1),
        layers.ReLU(),
        layers.Conv2d(third, second, kernel_size=3, padding=1),
        layers.ReLU(),
        layers.MaxPool2d(kernel_size=3, stride=2),
        layers.Flatten(),
        layers.Linear(second * rows * columns, hidden),
        layers.ReLU(),
        layers.Dropout(dropout),
        layers.Linear(hidden, hidden),
        layers.ReLU(),
        layers.Dropout(dropout),
        layers.Linear(hidden, num_classes),
    )
    return init_he(net)
