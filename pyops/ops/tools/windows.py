"""What the pooling ops share: arguments and output sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .checks import ArgumentError, as_integer, check_tensor

Pair = list[int]
IntOrPair = int | list[int] | tuple[int, ...]

_INT_MAX = 2**31 - 1


def check_image(function: str, input: Tensor, *, channels_may_be_empty: bool = False) -> None:
    """Raise unless ``input`` is [C, H, W] or [N, C, H, W] with at most N (and maybe C) of size 0."""
    check_tensor(function, "input", input)
    shape = input.shape
    rank = len(shape)
    if rank not in (3, 4):
        raise ArgumentError(
            f"{function}: input must have shape (C, H, W) or (N, C, H, W), got {tuple(shape)}"
        )
    if 0 in shape[-2 if channels_may_be_empty else -3 :]:
        raise ArgumentError(f"{function}: only the batch may be empty, got input of shape {tuple(shape)}")


def pair(function: str, name: str, value: IntOrPair, low: int) -> Pair:
    """``value`` for height and width: one integer for both, or a sequence of one or two."""
    if (single := as_integer(value)) is not None:
        values = [single, single]
    else:
        try:
            values = [as_integer(v) for v in value]  # type: ignore[union-attr]
        except TypeError:
            values = []
        if len(values) == 1:
            values = values * 2
    if len(values) != 2 or None in values:
        raise TypeError(f"{function}: {name} must be an integer or two, got {value!r}")
    if not (low <= values[0] <= _INT_MAX and low <= values[1] <= _INT_MAX):
        raise ArgumentError(f"{function}: {name} must be in [{low}, {_INT_MAX}], got {value!r}")
    return values


def stride_pair(function: str, stride: IntOrPair | None, kernel: Pair, name: str = "stride") -> Pair:
    """``stride``, by default (None or empty) the kernel size."""
    if stride is None or (not isinstance(stride, int) and hasattr(stride, "__len__") and len(stride) == 0):
        return kernel
    return pair(function, name, stride, 1)


def output_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """Number of windows along an axis (``csrc/math/pooling.h``); below 1 when none fits."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def output_sizes(
    size: Sequence[int], kernel: Pair, stride: Pair, padding: Pair, dilation: Sequence[int], ceil_mode: bool
) -> Pair:
    """Height and width of the output from those of the input."""
    return [output_size(size[i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode) for i in range(2)]


def check_windows(
    function: str,
    size: Sequence[int],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Sequence[int],
    ceil_mode: bool,
    *,
    pooled: str = "input",
    prefix: str = "",
) -> None:
    """Raise unless padding is at most half a kernel and at least one window fits into ``size``.

    The message calls the pooled image ``pooled`` and begins the arguments' names with ``prefix``.
    """
    if padding[0] > kernel[0] // 2 or padding[1] > kernel[1] // 2:
        raise ArgumentError(
            f"{function}: {prefix}padding must be at most half of kernel_size {tuple(kernel)}, "
            f"got {tuple(padding)}"
        )
    height, width = output_sizes(size, kernel, stride, padding, dilation, ceil_mode)
    if height < 1 or width < 1:
        raise ArgumentError(
            f"{function}: kernel_size {tuple(kernel)} with {prefix}dilation {tuple(dilation)} must fit into "
            f"the {pooled} of height and width {tuple(size)} with {prefix}padding {tuple(padding)}"
        )
