"""ResNet: layers that add to their input instead of replacing it, so that depth cannot hurt.

A block computes relu(body(x) + shortcut(x)). Its body is some convolutions, each followed by batch
normalisation and all but the last by ReLU; its shortcut is x itself where the shapes allow. A block whose
body learns nothing passes its input on: a deeper network can do at least what a shallower one does, and the
gradient reaches the first layers through the shortcuts, whatever the bodies do. A loss surface with
shortcuts is also smoother; that of ResNet-56 is the standard picture of it.

    resnet18, 34   7x7 64 s2, max pooling; four stages of blocks of two 3x3 convolutions, 64 to 512 channels
    resnet50       the same with bottlenecks: 1x1 to a quarter of the channels, 3x3, 1x1 to 256 ... 2048
    resnet56       for images of 32 x 32 (CIFAR-10): 3x3 16; three stages of nine blocks, 16, 32, 64 channels

Every stage but the first halves height and width in its first block, in a 3x3 convolution (in a bottleneck,
too, which loses fewer pixels than doing it in the 1x1 before). Where the shapes differ the shortcut is a 1x1
convolution with batch normalisation; in resnet56 it takes every second pixel and adds channels of zeros, so
only the 56 layers have weights. Convolutions have no bias: normalisation would remove it. Global average
pooling and one linear layer end each. The number in a name counts the layers with weights.

Source: course notes, "ResNet"; He et al., Deep residual learning for image recognition, 2015; Zhang et al.,
Dive into Deep Learning, section 8.6.
Shapes: images [N, C, H, W] of any size -> logits [N, num_classes]; the notes have 96 x 96. In training, the
last feature map of a channel must have at least two values in the batch: one has no variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

from torch import Tensor, nn

import pyops.nn

from ..recipe import Recipe
from ..registry import register
from .tools.initialization import init_he
from .tools.shapes import divided, feature_map

_SECTION = "004 ResNet"
_NOTES = Recipe(num_epochs=10, lr=0.05, batch_size=256, resize=96)
_DIGITS = Recipe(num_epochs=5, lr=0.05, batch_size=32, resize=32, options={"width": 4})

#: Channels of a bottleneck's output for each of its 3x3 convolution.
_EXPANSION = 4


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)) of two modules that make the same shape of x."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, layers: ModuleType) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.relu = layers.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.body(images) + self.shortcut(images))


class ZeroPadded(nn.Module):
    """Every ``stride``-th pixel, and ``channels`` more channels of zeros: a shortcut without weights.

    [N, C, H, W] to [N, C + channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        kept = images[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(kept, (0, 0, 0, 0, 0, self.channels))

    def extra_repr(self) -> str:
        return f"channels={self.channels}, stride={self.stride}"


#: Makes a block: (in_channels, channels of the stage, stride, layers).
_Block = Callable[[int, int, int, ModuleType], Residual]


def _normalised(
    in_channels: int, out_channels: int, kernel_size: int, layers: ModuleType, stride: int = 1
) -> tuple[nn.Module, nn.Module]:
    """A convolution that keeps height and width (but for its stride), and batch normalisation."""
    conv = layers.Conv2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
    )
    return conv, layers.BatchNorm2d(out_channels)


def _projection(in_channels: int, out_channels: int, stride: int, layers: ModuleType) -> nn.Module:
    """The shortcut from one shape to another: the identity where they are the same."""
    if in_channels == out_channels and stride == 1:
        return layers.Identity()
    return layers.Sequential(*_normalised(in_channels, out_channels, 1, layers, stride))


def _two_convolutions(in_channels: int, channels: int, stride: int, layers: ModuleType) -> nn.Module:
    return layers.Sequential(
        *_normalised(in_channels, channels, 3, layers, stride),
        layers.ReLU(),
        *_normalised(channels, channels, 3, layers),
    )


def _basic(in_channels: int, channels: int, stride: int, layers: ModuleType) -> Residual:
    body = _two_convolutions(in_channels, channels, stride, layers)
    return Residual(body, _projection(in_channels, channels, stride, layers), layers)


def _zero_padded(in_channels: int, channels: int, stride: int, layers: ModuleType) -> Residual:
    same = in_channels == channels and stride == 1
    shortcut = layers.Identity() if same else ZeroPadded(channels - in_channels, stride)
    return Residual(_two_convolutions(in_channels, channels, stride, layers), shortcut, layers)


def _bottleneck(in_channels: int, channels: int, stride: int, layers: ModuleType) -> Residual:
    between = max(1, channels // _EXPANSION)
    body = layers.Sequential(
        *_normalised(in_channels, between, 1, layers),
        layers.ReLU(),
        *_normalised(between, between, 3, layers, stride),
        layers.ReLU(),
        *_normalised(between, channels, 1, layers),
    )
    return Residual(body, _projection(in_channels, channels, stride, layers), layers)


def _stages(
    in_channels: int, channels: Sequence[int], blocks: Sequence[int], block: _Block, layers: ModuleType
) -> list[nn.Module]:
    """Sequentials of so many ``blocks`` of so many ``channels``; all but the first halve height and width."""
    stages: list[nn.Module] = []
    for number, out_channels in zip(blocks, channels, strict=True):
        made = []
        for i in range(number):
            made.append(block(in_channels, out_channels, 2 if stages and i == 0 else 1, layers))
            in_channels = out_channels
        stages.append(layers.Sequential(*made))
    return stages


def _network(modules: Sequence[nn.Module], channels: int, num_classes: int, layers: ModuleType) -> nn.Module:
    net = layers.Sequential(
        *modules, layers.AdaptiveAvgPool2d((1, 1)), layers.Flatten(), layers.Linear(channels, num_classes)
    )
    return init_he(net)


def resnet(
    name: str,
    block: _Block,
    stages: Sequence[tuple[int, int]],
    image_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 1,
    layers: ModuleType = pyops.nn,
) -> nn.Module:
    """ResNet on images [N, *image_shape]; each of the ``stages`` is (channels, number of blocks).

    ``block`` makes a block; ``width`` divides the number of channels. All weights start from He's normal
    distribution.

    Raises:
        NetworkError: images of fewer or more than three dimensions, or the width is not positive.
    """
    feature_map(name, image_shape, ())
    stem = divided(name, 64, width)
    channels = [divided(name, n, width) for n, _ in stages]
    modules = [
        *_normalised(image_shape[0], stem, 7, layers, stride=2),
        layers.ReLU(),
        layers.MaxPool2d(kernel_size=3, stride=2, padding=1),
        *_stages(stem, channels, [number for _, number in stages], block, layers),
    ]
    return _network(modules, channels[-1], num_classes, layers)


@register(
    "resnet56",
    notes=_SECTION,
    recipe=Recipe(num_epochs=10, lr=0.1, batch_size=128, resize=32),
    digits=_DIGITS,
)
def resnet56(
    image_shape: Sequence[int], num_classes: int, *, width: int = 1, layers: ModuleType = pyops.nn
) -> nn.Module:
    """ResNet-56 for small images [N, *image_shape]; all weights start from He's normal distribution.

    ``width`` divides the number of channels.

    Raises:
        NetworkError: images of fewer or more than three dimensions, or the width is not positive.
    """
    feature_map("resnet56", image_shape, ())
    channels = [divided("resnet56", n, width) for n in (16, 32, 64)]
    modules = [
        *_normalised(image_shape[0], channels[0], 3, layers),
        layers.ReLU(),
        *_stages(channels[0], channels, (9, 9, 9), _zero_padded, layers),
    ]
    return _network(modules, channels[-1], num_classes, layers)


def _register(name: str, block: _Block, *stages: tuple[int, int]) -> Callable[..., nn.Module]:
    return register(name, notes=_SECTION, recipe=_NOTES, digits=_DIGITS)(partial(resnet, name, block, stages))


resnet18 = _register("resnet18", _basic, (64, 2), (128, 2), (256, 2), (512, 2))
resnet34 = _register("resnet34", _basic, (64, 3), (128, 4), (256, 6), (512, 3))
resnet50 = _register("resnet50", _bottleneck, (256, 3), (512, 4), (1024, 6), (2048, 3))
