"""The pooling windows over a convolution's output; geometry as in csrc/math/pooling.h."""

from dataclasses import dataclass
from typing import NamedTuple

import triton.language as tl

from ..pooling.windows import Axis
from . import geometry

NO_GRADIENT: tl.constexpr = tl.constexpr(255)


class Window(NamedTuple):
    """The pooling windows along an axis.

    ``size``: elements of a window; ``stride``: from one window to the next; ``padding``: how far before the
    axis the first one begins; ``dilation``: from one element of a window to the next.
    """

    size: int
    stride: int
    padding: int
    dilation: int


@dataclass(frozen=True)
class Pool:
    """The windows over the convolution's output."""

    height: Axis
    width: Axis

    @property
    def windows(self) -> tuple["Window", "Window"]:
        """What a kernel gets of the axes."""
        axes = (self.height, self.width)
        return tuple(Window(axis.kernel, axis.stride, axis.padding, axis.dilation) for axis in axes)

    def is_wide(self, images: int, channels: int) -> bool:
        axes = (self.height, self.width)
        sizes = [max(axis.size, axis.out) + 2 * axis.padding for axis in axes]
        steps = [value for axis in axes for value in (axis.stride, axis.dilation)]
        return max(images * channels * sizes[0] * sizes[1], max(steps) ** 2) >= geometry.NARROW_ELEMENTS
