"""GoogLeNet: which window is best? All of them: Inception blocks look through several and join the channels.

A block has four branches that keep height and width: a 1x1 convolution; 1x1, then 3x3; 1x1, then 5x5; 3x3 max
pooling, then 1x1. The 1x1 convolutions in front make the larger ones cheap by giving them fewer channels.
Five stages halve height and width; as in NiN, global average pooling takes the place of large linear layers,
but one linear layer follows, so the number of channels does not depend on the number of classes.

Source: course notes, "GoogLeNet"; Szegedy et al., Going deeper with convolutions, 2014; Zhang et al., Dive
into Deep Learning, section 8.4. The auxiliary classifiers of the paper, in the middle of the network, are
left out.
Shapes: images [N, C, H, W] of any size -> logits [N, num_classes]; the notes have 96 x 96.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

import pyops.nn

from ..recipe import Recipe
from ..registry import register
from .tools.initialization import init_he
from .tools.shapes import divided, feature_map

#: Channels of the four branches of a block: 1x1; 1x1 then 3x3; 1x1 then 5x5; after the pooling.
_Channels = tuple[int, tuple[int, int], tuple[int, int], int]

#: The stages of Inception blocks; a max pooling comes before each.
_STAGES: tuple[tuple[_Channels, ...], ...] = (
    (
        (64, (96, 128), (16, 32), 32),
        (128, (128, 192), (32, 96), 64),
    ),
    (
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
    ),
    (
        (256, (160, 320), (32, 128), 128),
        (384, (192, 384), (48, 128), 128),
    ),
)


class Inception(nn.Module):
    """Four branches on the same input, joined by channels: [N, C, H, W] to [N, out_channels, H, W]."""

    def __init__(self, in_channels: int, channels: _Channels, layers: ModuleType) -> None:
        super().__init__()
        narrow, middle, wide, pooled = channels
        self.narrow = _convolution(in_channels, narrow, layers, kernel_size=1)
        self.middle = _two_convolutions(in_channels, middle, layers, kernel_size=3, padding=1)
        self.wide = _two_convolutions(in_channels, wide, layers, kernel_size=5, padding=2)
        self.pooled = layers.Sequential(
            layers.MaxPool2d(kernel_size=3, stride=1, padding=1),
            *_convolution(in_channels, pooled, layers, kernel_size=1),
        )
        self.out_channels = narrow + middle[1] + wide[1] + pooled

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(
            (self.narrow(images), self.middle(images), self.wide(images), self.pooled(images)), dim=1
        )


def _convolution(in_channels: int, out_channels: int, layers: ModuleType, **window: int) -> nn.Sequential:
    return layers.Sequential(layers.Conv2d(in_channels, out_channels, **window), layers.ReLU())


def _two_convolutions(
    in_channels: int, channels: tuple[int, int], layers: ModuleType, **window: int
) -> nn.Sequential:
    """A 1x1 convolution to ``channels[0]``, and one with ``window`` to ``channels[1]``."""
    between, out_channels = channels
    return layers.Sequential(
        *_convolution(in_channels, between, layers, kernel_size=1),
        *_convolution(between, out_channels, layers, **window),
    )


@register(
    "googlenet",
    notes="002 004 GoogLeNet",
    recipe=Recipe(num_epochs=10, lr=0.1, batch_size=128, resize=96),
    digits=Recipe(num_epochs=12, lr=0.001, batch_size=32, optimizer="adam", resize=32, options={"width": 4}),
)
def googlenet(
    image_shape: Sequence[int], num_classes: int, *, width: int = 1, layers: ModuleType = pyops.nn
) -> nn.Module:
    """GoogLeNet on images [N, *image_shape]; all weights start from He's normal distribution.

    ``width`` divides the number of channels.

    Raises:
        NetworkError: images of fewer or more than three dimensions, or the width is not positive.
    """
    feature_map("googlenet", image_shape, ())
    first, second = (divided("googlenet", n, width) for n in (64, 192))
    modules: list[nn.Module] = [
        *_convolution(image_shape[0], first, layers, kernel_size=7, stride=2, padding=3),
        _pool(layers),
        *_convolution(first, first, layers, kernel_size=1),
        *_convolution(first, second, layers, kernel_size=3, padding=1),
    ]
    channels = second
    for stage in _STAGES:
        modules.append(_pool(layers))
        for narrow, middle, wide, pooled in stage:
            block = Inception(
                channels,
                (
                    divided("googlenet", narrow, width),
                    (divided("googlenet", middle[0], width), divided("googlenet", middle[1], width)),
                    (divided("googlenet", wide[0], width), divided("googlenet", wide[1], width)),
                    divided("googlenet", pooled, width),
                ),
                layers,
            )
            modules.append(block)
            channels = block.out_channels
    modules += [layers.AdaptiveAvgPool2d((1, 1)), layers.Flatten(), layers.Linear(channels, num_classes)]
    return init_he(layers.Sequential(*modules))


def _pool(layers: ModuleType) -> nn.Module:
    return layers.MaxPool2d(kernel_size=3, stride=2, padding=1)
