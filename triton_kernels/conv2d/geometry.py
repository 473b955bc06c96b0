"""The geometry of a convolution, as in csrc/math/conv2d.h, and the checks of its arguments."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import torch

from pyops.kinds import Activation
from pyops.layouts import is_channels_last, memory_format

from ..tools.activation import check_activation
from ..tools.checks import check_dense, check_floating
from ..tools.launch import vector_alignment

_LIMIT = 2**30  # of strides and the like: no sum or product leaves 64 bits
# Offsets below it are computed in 32 bits, which takes half the registers; tiles may reach beyond tensors.
NARROW_ELEMENTS = 2**30


class Sides(NamedTuple):
    """``height`` and ``width`` of an image or a window."""

    height: int
    width: int


class Strides(NamedTuple):
    """Distances in memory, in elements, between neighbours of an image or a weight [n, c, y, x].

    ``n``: images or filters; ``c``: channels, None where there is but one; ``y``: rows; ``x``: columns.
    """

    n: int
    c: int | None
    y: int
    x: int


class Channels(NamedTuple):
    """Channels of a group, or what is known to divide them.

    ``inputs``: of what is read; ``outputs``: of what is written.
    """

    inputs: int
    outputs: int

    def alignment(self, itemsize: int) -> "Channels":
        return Channels(*(vector_alignment(size, itemsize) for size in self))

    def over(self, align: "Channels") -> "Channels":
        return Channels(self.inputs // align.inputs, self.outputs // align.outputs)


class Steps(NamedTuple):
    """How a window moves along an axis: ``stride`` elements at a time, from ``padding`` elements before the
    first one; its own elements are ``dilation`` apart."""

    stride: int
    padding: int
    dilation: int


class PhaseSteps(NamedTuple):
    """Steps, and what :func:`..tiles.axis_taps` makes of them.

    ``stride``, ``padding``, ``dilation``: as in :class:`Steps`; ``common``: the greatest common divisor of
    stride and dilation; ``inverse``: that of dilation / common modulo stride / common.
    """

    stride: int
    padding: int
    dilation: int
    common: int
    inverse: int


@dataclass(frozen=True)
class Axis:
    """An axis of a convolution: sizes of input and kernel, and how the kernel moves."""

    input: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def extent(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    @property
    def output(self) -> int:
        return (self.input + 2 * self.padding - self.extent) // self.stride + 1

    @property
    def steps(self) -> Steps:
        return Steps(self.stride, self.padding, self.dilation)

    @property
    def phase_steps(self) -> PhaseSteps:
        common = gcd(self.stride, self.dilation)
        step = self.stride // common
        inverse = pow(self.dilation // common, -1, step) if step > 1 else 0
        return PhaseSteps(self.stride, self.padding, self.dilation, common, inverse)


@dataclass(frozen=True)
class Shape:
    """A convolution's sizes."""

    images: int
    in_channels: int
    out_channels: int
    groups: int
    height: Axis
    width: Axis
    channels_last: bool  # of the output

    @property
    def output(self) -> tuple[int, int, int, int]:
        return self.images, self.out_channels, self.height.output, self.width.output

    @property
    def in_group(self) -> int:
        return self.in_channels // self.groups

    @property
    def out_group(self) -> int:
        return self.out_channels // self.groups

    def sides(self, pixels_last: bool) -> tuple[Sides, Sides]:
        """Those of input and output.

        Where pixels are neighbours in memory and their places do not matter, an image is one long row: the
        compiler can see then what divides its length.
        """
        axes = (self.height, self.width)
        both = Sides(*(axis.input for axis in axes)), Sides(*(axis.output for axis in axes))
        if self.is_pointwise and pixels_last:
            both = tuple(Sides(1, sides.height * sides.width) for sides in both)
        return both

    @property
    def taps(self) -> int:
        return self.height.kernel * self.width.kernel

    @property
    def is_pointwise(self) -> bool:
        """Whether pixel i of the output is made of pixel i of the input."""
        axes = (self.height, self.width)
        return all((a.kernel, a.stride, a.padding) == (1, 1, 0) for a in axes)

    @property
    def is_wide(self) -> bool:
        """Whether offsets, positions in the padded input or products of strides need 64 bits."""
        axes = (self.height, self.width)
        padded = [axis.input + 2 * axis.padding for axis in axes]
        elements = (
            self.images * self.in_channels * padded[0] * padded[1],
            self.images * self.out_channels * self.height.output * self.width.output,
            self.out_channels * self.in_group * self.taps,
        )
        steps = [value for axis in axes for value in (axis.stride, axis.dilation, axis.padding)]
        return max(*elements, max(steps) ** 2) >= NARROW_ELEMENTS

    @property
    def key(self) -> tuple[object, ...]:
        """All but the batch size."""
        return self.in_channels, self.out_channels, self.groups, self.height, self.width, self.channels_last


def check_image(
    image: torch.Tensor,
    op: str,
    name: str,
    like: torch.Tensor,
    shape: Sequence[int] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Raise RuntimeError unless ``image`` is 4-D, dense in either format, and of the device and dtype of
    ``like`` (or of ``dtype``)."""
    dtype = like.dtype if dtype is None else dtype
    if image.device != like.device or image.dtype != dtype:
        raise RuntimeError(
            f"{op}: {name} must be {dtype} on {like.device}, got {image.dtype} on {image.device}"
        )
    if image.dim() != 4 or (shape is not None and tuple(image.shape) != tuple(shape)):
        wanted = "4 dimensions" if shape is None else f"shape {tuple(shape)}"
        raise RuntimeError(f"{op}: {name} must have {wanted}, got shape {tuple(image.shape)}")
    if not (image.is_contiguous() or image.is_contiguous(memory_format=torch.channels_last)):
        raise RuntimeError(f"{op}: {name} must be contiguous or channels_last, got strides {image.stride()}")


def check_bias(bias: torch.Tensor | None, op: str, input: torch.Tensor, shape: Shape) -> None:
    if bias is not None:
        check_dense(bias, op, "bias", like=input, dtype=input.dtype, shape=(shape.out_channels,))


def check_like_output(
    image: torch.Tensor | None, op: str, name: str, like: torch.Tensor, shape: Shape
) -> None:
    """Raise RuntimeError unless ``image`` has the shape, dtype and memory format of the output."""
    if image is None:
        return
    check_image(image, op, name, like, shape.output)
    format = memory_format(shape.channels_last)
    if not image.is_contiguous(memory_format=format):
        raise RuntimeError(f"{op}: {name} must be in the output's memory format, {format}")


def _axis(op: str, input: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    for name, value, least in (("stride", stride, 1), ("dilation", dilation, 1), ("padding", padding, 0)):
        if not least <= value < _LIMIT:
            raise RuntimeError(f"{op}: {name} must be at least {least}, got {value}")
    if not 1 <= kernel < _LIMIT:
        raise RuntimeError(f"{op}: the kernel's sides must be at least 1, got {kernel}")
    axis = Axis(input, kernel, stride, padding, dilation)
    if axis.extent > input + 2 * padding:
        raise RuntimeError(
            f"{op}: the kernel, {axis.extent} with its dilation, must fit into the padded input's "
            f"{input + 2 * padding}"
        )
    return axis


def check_conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: Activation,
    op: str,
) -> Shape:
    """The geometry, after the checks that memory safety asks for."""
    check_floating(input, op, "input")
    check_image(input, op, "input", input)
    check_image(weight, op, "weight", input)
    if not len(stride) == len(padding) == len(dilation) == 2:
        raise RuntimeError(f"{op}: stride, padding and dilation must be two numbers each")
    out_channels, in_group, kernel_h, kernel_w = weight.shape
    if groups < 1 or out_channels < 1 or out_channels % groups:
        raise RuntimeError(f"{op}: groups must divide the output channels, {out_channels}, got {groups}")
    images, in_channels, height, width = input.shape
    if in_group < 1 or in_channels != in_group * groups:
        raise RuntimeError(
            f"{op}: input must have {in_group} channels in each of {groups} groups, "
            f"got shape {tuple(input.shape)}"
        )
    check_activation(activation, op)
    axes = (
        _axis(op, height, kernel_h, stride[0], padding[0], dilation[0]),
        _axis(op, width, kernel_w, stride[1], padding[1], dilation[1]),
    )
    channels_last = is_channels_last(input) or is_channels_last(weight)
    return Shape(images, in_channels, out_channels, groups, *axes, channels_last)
