"""VGG: networks of equal blocks. A block is some 3x3 convolutions with ReLU and a max pooling that halves
height and width; five blocks double the channels up to 512, and three linear layers follow.

Two 3x3 convolutions see as far as one 5x5, with fewer weights and one non-linearity more: for the same
cost, deeper and narrower won. The number in a name counts the layers with weights.

Source: course notes, "VGG"; Simonyan and Zisserman, Very deep convolutional networks for large-scale image
recognition, 2014; Zhang et al., Dive into Deep Learning, section 8.2.
Shapes: images [N, C, H, W], H and W at least 32 -> logits [N, num_classes]; the notes have 224 x 224.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

from torch import nn

import pyops.nn

from ..recipe import Recipe
from ..registry import register
from .tools.initialization import init_he
from .tools.shapes import Window, divided, feature_map

_CHANNELS = (64, 128, 256, 512, 512)
_HIDDEN = 4096
_SECTION = "002 004 VGG"
_NOTES = Recipe(num_epochs=10, lr=0.05, batch_size=128, resize=224)
_DIGITS = Recipe(num_epochs=12, lr=0.0003, batch_size=32, optimizer="adam", resize=32, options={"width": 8})


def vgg(
    convolutions: Sequence[int],
    image_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 1,
    dropout: float = 0.5,
    layers: ModuleType = pyops.nn,
) -> nn.Module:
    """VGG on images [N, *image_shape] with so many ``convolutions`` in each block.

    ``width`` divides the number of channels and of hidden units. All weights start from He's normal
    distribution: with Xavier's the signal of the deep ones shrinks at every ReLU, and they do not learn.

    Raises:
        NetworkError: the images are too small, or the width is not positive.
    """
    name = _name(convolutions)
    rows, columns = feature_map(name, image_shape, [Window(2, stride=2)] * len(convolutions))
    channels = [image_shape[0], *(divided(name, n, width) for n in _CHANNELS)]
    hidden = divided(name, _HIDDEN, width)
    blocks = [_block(number, channels[i], channels[i + 1], layers) for i, number in enumerate(convolutions)]
    net = layers.Sequential(
        *blocks,
        layers.Flatten(),
        layers.Linear(channels[-1] * rows * columns, hidden),
        layers.ReLU(),
        layers.Dropout(dropout),
        layers.Linear(hidden, hidden),
        layers.ReLU(),
        layers.Dropout(dropout),
        layers.Linear(hidden, num_classes),
    )
    return init_he(net)


def _name(convolutions: Sequence[int]) -> str:
    return f"vgg{sum(convolutions) + 3}"


def _block(number: int, in_channels: int, out_channels: int, layers: ModuleType) -> nn.Module:
    """``number`` 3x3 convolutions with ReLU, then a 2x2 max pooling: [N, in, H, W] to [N, out, H/2, W/2]."""
    modules: list[nn.Module] = []
    for i in range(number):
        modules.append(
            layers.Conv2d(in_channels if i == 0 else out_channels, out_channels, kernel_size=3, padding=1)
        )
        modules.append(layers.ReLU())
    modules.append(layers.MaxPool2d(kernel_size=2, stride=2))
    return layers.Sequential(*modules)


def _register(*convolutions: int) -> Callable[..., nn.Module]:
    as_named = register(_name(convolutions), notes=_SECTION, recipe=_NOTES, digits=_DIGITS)
    return as_named(partial(vgg, convolutions))


vgg11 = _register(1, 1, 2, 2, 2)
vgg13 = _register(2, 2, 2, 2, 2)
vgg16 = _register(2, 2, 3, 3, 3)
vgg19 = _register(2, 2, 4, 4, 4)
