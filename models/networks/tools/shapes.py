"""Sizes of feature maps: what a chain of convolutions and poolings leaves of an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...errors import NetworkError


@dataclass(frozen=True)
class Window:
    """The window that a convolution or a pooling slides over a feature map."""

    kernel: int
    stride: int = 1
    padding: int = 0

    def positions(self, size: int) -> int:
        """Positions of the window along a side of ``size`` pixels; none when it does not fit."""
        return max(0, (size + 2 * self.padding - self.kernel) // self.stride + 1)

    def least(self, positions: int) -> int:
        """The smallest side that has so many positions."""
        return (positions - 1) * self.stride + self.kernel - 2 * self.padding


def feature_map(name: str, image_shape: Sequence[int], windows: Sequence[Window]) -> tuple[int, int]:
    """Height and width that ``windows``, one after another, leave of images [C, H, W].

    Raises:
        NetworkError: nothing is left; the message names the network and the smallest image it takes.
    """
    if len(image_shape) != 3:
        raise NetworkError(f"{name} takes images of shape (C, H, W), got {tuple(image_shape)}")
    height, width = (_slide(size, windows) for size in image_shape[1:])
    if height < 1 or width < 1:
        side = 1
        for window in reversed(windows):
            side = max(1, window.least(side))
        got = " x ".join(str(size) for size in image_shape[1:])
        raise NetworkError(f"{name} takes images of at least {side} x {side}, got {got}: resize them")
    return height, width


def _slide(size: int, windows: Iterable[Window]) -> int:
    for window in windows:
        size = window.positions(size)
    return size


def divided(name: str, channels: int, divisor: int) -> int:
    """``channels`` of a network made ``divisor`` times narrower, at least one.

    Raises:
        NetworkError: the divisor is not positive.
    """
    if divisor < 1:
        raise NetworkError(f"{name}: width must be at least 1 (it divides the channels), got {divisor}")
    return max(1, channels // divisor)
