"""What the convolutions share: checks and normal forms of their arguments, with 1 or 2 spatial sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...dtypes import autocast
from .checks import (
    ArgumentError,
    DtypeError,
    as_integer,
    check_device,
    check_shape,
    check_tensor,
    integer,
)


class Geometry(NamedTuple):
    """How kernels lie on images."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def of_images(geometry: Geometry) -> Geometry:
    """The geometry of rows as that of images of height 1."""
    stride, padding, dilation, groups = geometry
    return Geometry([1, *stride], [0, *padding], [1, *dilation], groups)


def output_shape(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    sizes = [
        (size + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i, size in enumerate(input.shape[2:])
    ]
    return [input.shape[0], weight.shape[0], *sizes]


def are_torchs(input: Tensor, weight: Tensor) -> bool:
    """Whether these are integers or complex numbers, of one dtype, which torch's op takes alone."""
    return not input.is_floating_point() and isinstance(weight, Tensor) and weight.dtype == input.dtype


def prepare(
    name: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    sides: int = 2,
) -> tuple[Tensor, Tensor, Tensor | None, Geometry]:
    """The tensors in the dtype that autocast asks for and the geometry, all of it checked.

    ``sides`` is the number of spatial dimensions. The input has one more row or column where
    ``padding="same"`` is uneven.
    """
    check_tensor(name, "weight", weight)
    input, weight, bias = autocast(input, weight, bias)
    _check_tensors(name, input, weight, bias, groups, sides)
    strides = _by_side(name, "stride", stride, 1, sides)
    dilations = _by_side(name, "dilation", dilation, 1, sides)
    if isinstance(padding, str):
        input, paddings = _named_padding(name, padding, input, weight, strides, dilations)
    else:
        paddings = _by_side(name, "padding", padding, 0, sides)
    geometry = Geometry(strides, paddings, dilations, groups)
    _check_kernel_fits(name, input, weight, geometry)
    return input, weight, bias, geometry


def checked_residual(
    name: str, residual: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """The residual in the dtype that autocast asks for, checked against what :func:`prepare` returned."""
    check_tensor(name, "residual", residual)
    (residual,) = autocast(residual)
    shape = tuple(output_shape(input, weight, *geometry[:3]))
    check_device(name, "residual", residual, input)
    check_shape(name, "residual", residual, shape, "the output's")
    if residual.dtype is not input.dtype:
        raise DtypeError(f"{name}: residual must have the input's dtype {input.dtype}, got {residual.dtype}")
    return residual


def _by_side(function: str, name: str, value: int | Sequence[int], least: int, sides: int) -> list[int]:
    """``value`` for each side."""
    single: Any = as_integer(value)
    values = (single,) if single is not None else value
    found: list[Any] = [as_integer(v) for v in values] if isinstance(values, Iterable) else []
    if len(found) == 1:
        found = found * sides
    if len(found) != sides or None in found:
        count = "a number or two" if sides == 2 else "a number"
        raise ArgumentError(f"{function}: {name} must be {count}, got {value!r}")
    if min(found) < least:
        raise ArgumentError(f"{function}: {name} must be at least {least}, got {value!r}")
    return found


#: By the number of sides: what they are called, and the shape of weights.
_SIDES = {1: ("length",), 2: ("height", "width")}
_WEIGHTS = {1: "(K, C / groups, R)", 2: "(K, C / groups, R, S)"}


def _check_tensors(
    name: str, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, sides: int
) -> None:
    check_device(name, "weight", weight, input)
    if input.dim() != sides + 2:
        raise ArgumentError(
            f"{name}: Expected {sides + 1}D (unbatched) or {sides + 2}D (batched) input to conv{sides}d, "
            f"but got input of size: {list(input.shape)}"
        )
    if weight.dim() != sides + 2:
        raise ArgumentError(f"{name}: weight must have shape {_WEIGHTS[sides]}, got {tuple(weight.shape)}")
    if weight.dtype is not input.dtype:
        raise DtypeError(f"{name}: weight must have the input's dtype {input.dtype}, got {weight.dtype}")
    if integer(name, "groups", groups) < 1:
        raise ArgumentError(f"{name}: groups must be at least 1, got {groups}")
    if weight.shape[0] == 0 or weight.shape[0] % groups:
        raise ArgumentError(
            f"{name}: groups must divide the weight's {weight.shape[0]} output channels, got {groups}"
        )
    if weight.shape[1] == 0 or input.shape[1] != weight.shape[1] * groups:
        raise ArgumentError(
            f"{name}: the weight has {weight.shape[1]} channels and groups is {groups}, "
            f"so input must have {weight.shape[1] * groups} channels, got shape {tuple(input.shape)}"
        )
    if bias is not None:
        check_device(name, "bias", bias, input)
        check_shape(name, "bias", bias, (weight.shape[0],), "one per output channel")
        if bias.dtype is not input.dtype:
            raise DtypeError(f"{name}: bias must have the input's dtype {input.dtype}, got {bias.dtype}")


def _named_padding(
    name: str, padding: str, input: Tensor, weight: Tensor, stride: list[int], dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """The padding called ``"same"`` or ``"valid"``; the input with one more row or column where it is odd."""
    if padding == "valid":
        return input, [0] * len(stride)
    if padding != "same":
        raise ArgumentError(f"{name}: padding must be 'same', 'valid' or numbers, got {padding!r}")
    if max(stride) != 1:
        raise ArgumentError(f"{name}: padding='same' needs stride 1, got {stride}")
    total = [dilation[i] * (weight.shape[2 + i] - 1) for i in range(len(stride))]
    odd = [t % 2 for t in total]
    if any(odd):  # as torch: the extra one comes last
        input = torch.nn.functional.pad(input, [n for o in reversed(odd) for n in (0, o)])
    return input, [t // 2 for t in total]


def _check_kernel_fits(name: str, input: Tensor, weight: Tensor, geometry: Geometry) -> None:
    for i, side in enumerate(_SIDES[input.dim() - 2]):
        extent = geometry.dilation[i] * (weight.shape[2 + i] - 1) + 1
        padded = input.shape[2 + i] + 2 * geometry.padding[i]
        if weight.shape[2 + i] == 0 or extent > padded:
            raise ArgumentError(
                f"{name}: the kernel's {side} is {weight.shape[2 + i]}, {extent} with its dilation, and must "
                f"be at least 1 and at most the padded input's {padded} (input {input.shape[2 + i]}, "
                f"padding {geometry.padding[i]})"
            )
