"""Nearest-neighbour interpolation: schemas, autograd and the public function.

Kernels: ``csrc/cpu/interpolate.cpp``, ``csrc/cuda/interpolate.cu``, ``triton_kernels/interpolate.py``; the
index formula is in ``csrc/math/interpolate.h``. The raw ops take [N, C, *spatial], or [N, *spatial, C] with
``channels_last``, contiguous. A scale factor of 0 means the ratio of the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends
from ..layouts import no_view, strides_are_channels_last
from ..reference import interpolate as reference
from .tools.autograd import apply
from .tools.checks import ArgumentError, as_integer, check_tensor, number

__all__ = ["interpolate"]


def _fake(
    tensor: Tensor, size: Sequence[int], scale_factors: Sequence[float], exact: bool, channels_last: bool
) -> Tensor:
    shape = tensor.shape
    if channels_last:
        return tensor.new_empty((shape[0], *size, shape[-1]))
    return tensor.new_empty((*shape[:2], *size))


_library.define(
    "interpolate_nearest_forward",
    "(Tensor input, SymInt[] output_size, float[] scale_factors, bool exact, bool channels_last) -> Tensor",
    _fake,
)
_library.define(
    "interpolate_nearest_backward",
    "(Tensor grad_output, SymInt[] input_size, float[] scale_factors, bool exact, bool channels_last) "
    "-> Tensor",
    _fake,
)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        output_size: Sequence[int],
        scale_factors: Sequence[float],
        exact: bool,
        channels_last: bool,
        ops: SimpleNamespace,
    ) -> Tensor:
        ctx.sizes = (input.shape[2:], output_size)
        ctx.options, ctx.ops = (scale_factors, exact, channels_last), ops
        return _in_memory_order(ops.interpolate_nearest_forward, input, output_size, *ctx.options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            result = apply(_InterpolateGradient, grad, ctx.sizes, ctx.options, ctx.ops)
        else:
            op = ctx.ops.interpolate_nearest_backward
            result = _in_memory_order(op, grad, ctx.sizes[0], *ctx.options)
        return result, None, None, None, None, None


class _InterpolateGradient(torch.autograd.Function):
    """The input's gradient: linear in the output's, so its own gradient is the interpolation again."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, sizes: Any, options: Any, ops: SimpleNamespace) -> Tensor:
        ctx.sizes, ctx.options, ctx.ops = sizes, options, ops
        return _in_memory_order(ops.interpolate_nearest_backward, grad, sizes[0], *options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return apply(_Interpolate, grad, ctx.sizes[1], *ctx.options, ctx.ops), None, None, None


def _in_memory_order(
    op: Any, input: Tensor, size: Sequence[int], factors: Sequence[float], exact: bool, channels_last: bool
) -> Tensor:
    """``op`` of the tensor as it is to lie; its result is in torch's order, and no view for autograd."""
    if not channels_last:
        return op(input.contiguous(), size, factors, exact, False)
    output = op(input.movedim(1, -1).contiguous(), size, factors, exact, True)
    return no_view(output.movedim(-1, 1))


def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    r"""Resize the spatial dimensions of a tensor, as :func:`torch.nn.functional.interpolate`.

    Modes ``"nearest"`` and ``"nearest-exact"`` of floating tensors are kernels of this library; every other
    mode and dtype is torch's own function, called with the same arguments.

    Args:
        input: tensor of shape (N, C, W), (N, C, H, W) or (N, C, D, H, W); channels_last is kept.
        size: output size, one number or one per spatial dimension.
        scale_factor: multiplier of the size instead, likewise.
        mode: ``"nearest"`` (source index floor(i * scale)) or ``"nearest-exact"`` (floor((i + 0.5) * scale)),
            where scale is 1 / scale_factor, or the ratio of the sizes; in float32 for every dtype, on every
            device, as torch has it on CUDA. (On the CPU torch makes exceptions: for float64 it is float64; in
            some kernels, and always in backward, a scale factor that happens to keep or to double the size
            counts as 1 or 2.)
        align_corners, antialias: of other modes only.
        recompute_scale_factor: use the ratio of the sizes although ``scale_factor`` is given.

    Returns:
        Tensor of shape (N, C, *output size). Its gradient sums each input element's outputs in order, 16-bit
        types in float32.

    Raises:
        TypeError, ValueError: an argument of wrong type or value, or an option that the mode does not have.
        RuntimeError: an input without channels or spatial extent; an output size below 1.
    """
    name = "interpolate"
    check_tensor(name, "input", input)
    arguments = (input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    if mode not in ("nearest", "nearest-exact") or input.dim() not in (3, 4, 5):
        return torch.nn.functional.interpolate(*arguments)
    if align_corners is not None or antialias:
        option = "antialias" if align_corners is None else "align_corners"
        raise ArgumentError(f"{name}: {option} is an option of the linear modes, mode is {mode!r}")
    sizes, factors = _output_size(name, input, size, scale_factor, recompute_scale_factor)
    if backends.prefers_torch(name, input) or not input.is_floating_point():
        return torch.nn.functional.interpolate(*arguments)
    if min(sizes) < 1:
        raise RuntimeError(f"{name}: output size must be at least 1, got {tuple(sizes)}")
    if _product(input.shape[1:]) == 0:
        raise RuntimeError(f"{name}: input must be non-empty but for its batch, got {tuple(input.shape)}")
    exact = mode == "nearest-exact"
    ops = backends.resolve(input)
    channels_last = strides_are_channels_last(input)
    if ops is None:
        output = reference.interpolate_nearest(input, sizes, factors, exact)
        if not channels_last:
            return output.contiguous()
        return output.movedim(1, -1).contiguous().movedim(-1, 1)
    if input.requires_grad and torch.is_grad_enabled():
        return apply(_Interpolate, input, sizes, factors, exact, channels_last, ops)
    return _in_memory_order(ops.interpolate_nearest_forward, input, sizes, factors, exact, channels_last)


def _product(sizes: Sequence[int]) -> int:
    """Not math.prod: torch.compile traces this with symbols."""
    product = 1
    for size in sizes:
        product *= size
    return product


def _per_dimension(name: str, argument: str, value: Any, spatial: int) -> list[Any]:
    """One value for every spatial dimension."""
    if not isinstance(value, (list, tuple)):
        return [value] * spatial
    if len(value) != spatial:
        raise ArgumentError(
            f"{name}: {argument} must have one value for each of the input's {spatial} spatial dimensions, "
            f"got {value}"
        )
    return list(value)


def _output_size(
    name: str, input: Tensor, size: Any, scale_factor: Any, recompute: bool | None
) -> tuple[list[int], list[float]]:
    """The output's spatial sizes, and the scale factors of the index formula (0: from the sizes)."""
    spatial = input.dim() - 2
    if (size is None) == (scale_factor is None):
        given = "neither" if size is None else "both"
        raise ArgumentError(f"{name}: either size or scale_factor must be given, got {given}")
    if size is not None:
        if recompute:
            raise ArgumentError(f"{name}: recompute_scale_factor needs a scale_factor, got size={size}")
        sizes = _per_dimension(name, "size", size, spatial)
        integers = [as_integer(value) for value in sizes]
        if None in integers:
            raise TypeError(
                f"{name}: expected size to be one of int or several ints, got {sizes[integers.index(None)]!r}"
            )
        return integers, [0.0] * spatial
    factors = [
        number(name, "scale_factor", f) for f in _per_dimension(name, "scale_factor", scale_factor, spatial)
    ]
    if not all(-math.inf < factor < math.inf for factor in factors):
        raise ArgumentError(f"{name}: scale_factor must be finite, got {scale_factor}")
    sizes = [int(input.shape[i + 2] * factor) for i, factor in enumerate(factors)]
    return sizes, [0.0] * spatial if recompute else factors
