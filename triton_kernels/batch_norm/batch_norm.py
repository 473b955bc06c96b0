"""Batch normalisation; formulas as in csrc/math/batch_norm.h.

A tensor [outer, channels, inner] is seen as ``outer`` rows of channels * inner elements. Where inner is
large, a program's tile is a piece of one channel's part of some rows; otherwise it is some columns, whose
channels alternate. Either way neighbouring threads read neighbouring elements. Many programs sum the
statistics, about a shift that is near their own values, and leave moments in float64; one kernel merges these
in a fixed order, and another pass writes.
"""

from typing import Any, NamedTuple

import torch

from pyops._library import implement
from pyops.kinds import Activation

from ..tools.activation import IDENTITY, RELU, check_activation
from ..tools.checks import acc_dtype, check_dense, check_floating
from ..tools.launch import cdiv, launch, next_power_of_2
from . import backward, forward
from .backward import add_kernel, finish_gradients_kernel, gradient_sums_kernel, input_gradient_kernel
from .forward import (
    GIVEN,
    OF_BATCH,
    RUNNING,
    finish_statistics_kernel,
    merge_kernel,
    normalize_kernel,
    statistics_kernel,
)
from .tiles import MAP_ALIGN, Tiling

_LONG_RUN = 64  # as in csrc/binding/batch_norm.h: the mask's rows depend on it
_TILE = 2048
_PROGRAMS = 1024  # that sum, at most: some for each multiprocessor
# Partial results of one channel, and channels, that a program merges at once: there are few channels, and
# four float64 numbers are as much as memory gives at once.
_FINISH_TILE = (256, 4)
# Offsets below it are computed in 32 bits; tiles may reach beyond tensors.
NARROW_ELEMENTS = 2**31 - 2 * _TILE


class _Shape(NamedTuple):
    """A tensor as [``outer``, ``channels``, ``inner``]."""

    outer: int
    channels: int
    inner: int

    @staticmethod
    def of(input: torch.Tensor, dim: int, op: str) -> "_Shape":
        check_floating(input, op, "input")
        check_dense(input, op, "input", like=input, dtype=input.dtype)
        if not 0 <= dim < input.dim():
            raise RuntimeError(f"{op}: dim must be in [0, {input.dim() - 1}], got {dim}")
        shape = input.shape
        return _Shape(shape[:dim].numel(), shape[dim], shape[dim + 1 :].numel())

    @property
    def runs(self) -> bool:
        return self.inner >= _LONG_RUN

    @property
    def numel(self) -> int:
        return self.outer * self.channels * self.inner

    @property
    def mask(self) -> tuple[int, int]:
        rows, width = self.outer, self.channels * self.inner
        if self.runs:
            rows, width = self.outer * self.channels, self.inner
        return rows, cdiv(width, 8)


class _Tiles(NamedTuple):
    """How the rows of ``shape`` are shared out: groups x strips of columns x slices of rows.

    ``groups``: channels of runs, otherwise 1; ``width``: columns of a group; ``block_rows`` and
    ``block_width``: a tile's; ``align``: a power of two that divides ``width``.
    """

    shape: _Shape
    groups: int
    width: int
    block_rows: int
    block_width: int
    align: int

    @staticmethod
    def of(s: _Shape) -> "_Tiles":
        groups, width = (s.channels, s.inner) if s.runs else (1, s.channels * s.inner)
        block_width = max(8, min(next_power_of_2(width), 1024 if s.runs else 128))
        block_rows = max(1, _TILE // block_width)
        return _Tiles(s, groups, width, block_rows, block_width, min(width & -width, 16))

    @property
    def strips(self) -> int:
        return cdiv(self.width, self.block_width)

    @property
    def row_blocks(self) -> int:
        return cdiv(self.shape.outer, self.block_rows)

    @property
    def slices(self) -> int:
        """Programs that share the rows of a strip where they are summed."""
        return max(1, min(self.row_blocks, _PROGRAMS // (self.groups * self.strips)))

    @property
    def parts(self) -> tuple[int, int]:
        """Partial results of a channel, and their distance: they lie as [..., channels, distance]."""
        inner = self.shape.inner
        return (self.strips * self.slices, 1) if self.shape.runs else (self.slices * inner, inner)

    def launch(
        self, kernel: Any, slices: int, device: torch.device, *args: Any, num_warps: int = 4, **meta: Any
    ) -> None:
        s = self.shape
        stride = s.channels * s.inner
        wide = self.row_blocks * self.block_rows * stride >= NARROW_ELEMENTS
        tiling = Tiling(s.runs, s.inner == 1, self.align, wide, self.block_rows, self.block_width)
        launch(
            kernel, self.groups * self.strips * slices, device, *args,
            s.outer, s.channels, s.inner, stride // self.align, self.width // self.align,
            self.strips, slices, cdiv(self.row_blocks, slices), TILING=tiling, num_warps=num_warps, **meta,
        )  # fmt: skip

    def finish(self, kernel: Any, device: torch.device, *args: Any, **meta: Any) -> None:
        """Launch ``kernel`` over the channels, of which partial results are to be merged."""
        (parts, distance), channels, (rows, columns) = self.parts, self.shape.channels, _FINISH_TILE
        launch(
            kernel, cdiv(channels, columns), device, *args, channels, parts, distance, cdiv(parts, rows),
            ROWS=rows, COLUMNS=columns, num_warps=4, **meta,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------- checks


def _check_vector(t: torch.Tensor | None, op: str, name: str, input: torch.Tensor, s: _Shape) -> None:
    if t is not None:
        dtype = t.dtype if t.dtype == input.dtype else acc_dtype(input.dtype)
        check_dense(t, op, name, like=input, dtype=dtype, shape=(s.channels,))


def _check_image(t: torch.Tensor | None, op: str, name: str, input: torch.Tensor) -> None:
    if t is not None:
        check_dense(t, op, name, like=input, dtype=input.dtype, shape=input.shape)


def _check_pair(t: torch.Tensor | None, op: str, name: str, input: torch.Tensor, s: _Shape) -> None:
    if t is not None:
        check_dense(t, op, name, like=input, dtype=torch.float64, shape=(2, s.channels))


def _check_backward(tensors: backward.Tensors, dim: int, activation: Activation, op: str) -> _Shape:
    grad_output, input, weight, bias, residual, mask, mean, rstd = tensors
    s = _Shape.of(input, dim, op)
    check_activation(activation, op)
    _check_image(grad_output, op, "grad_output", input)
    _check_vector(weight, op, "weight", input, s)
    _check_vector(bias, op, "bias", input, s)
    _check_image(residual, op, "residual", input)
    check_dense(mean, op, "mean", like=input, dtype=torch.float64, shape=(s.channels,))
    check_dense(rstd, op, "rstd", like=input, dtype=acc_dtype(input.dtype), shape=(s.channels,))
    if mask is not None:
        check_dense(mask, op, "mask", like=input, dtype=torch.uint8, shape=s.mask)
        if activation.kind != RELU.value:
            raise RuntimeError(f"{op}: a mask is for relu, got kind {activation.kind}")
    return s


# ---------------------------------------------------------------------------------------------- launchers


def _new_map(rstd: torch.Tensor, numbers: int) -> torch.Tensor:
    """Memory for so many ``numbers`` of each channel, of the dtype of ``rstd`` [channels]."""
    return rstd.new_empty((numbers, cdiv(rstd.numel(), MAP_ALIGN.value) * MAP_ALIGN.value))


def _partial_moments(input: torch.Tensor, tiles: _Tiles) -> torch.Tensor:
    """Count, mean and sum of squared deviations of every part of every channel."""
    parts, _ = tiles.parts
    shape = (3, parts, tiles.shape.channels)
    partial = torch.empty(shape, dtype=torch.float64, device=input.device)
    size = parts * tiles.shape.channels
    tiles.launch(statistics_kernel, tiles.slices, input.device, input, partial, size)
    return partial


@implement("pyops_triton", "batch_norm_forward")
def batch_norm_forward(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    statistics: torch.Tensor | None,
    dim: int,
    training: bool,
    momentum: float,
    eps: float,
    kind: int,
    alpha: float,
    beta: float,
    save_mask: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, mean, 1 / deviation and relu's mask of one bit per element."""
    op = "batch_norm_forward"
    s = _Shape.of(input, dim, op)
    activation = Activation(kind, alpha, beta)
    check_activation(activation, op)
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, vector in vectors.items():
        _check_vector(vector, op, name, input, s)
    _check_image(residual, op, "residual", input)
    _check_pair(statistics, op, "statistics", input, s)
    if not training and statistics is None and (running_mean is None or running_var is None):
        raise RuntimeError(f"{op}: running_mean and running_var must be given unless training")
    if save_mask and kind != RELU.value:
        raise RuntimeError(f"{op}: save_mask is for relu, got kind {kind}")
    output, device = torch.empty_like(input), input.device
    mean = torch.empty(s.channels, dtype=torch.float64, device=device)
    rstd = torch.empty(s.channels, dtype=acc_dtype(input.dtype), device=device)
    mask = torch.empty(s.mask if save_mask else (0, 0), dtype=torch.uint8, device=device)
    if s.numel == 0:
        return output, mean.zero_(), rstd.fill_(1.0), mask.zero_()
    tiles = _Tiles.of(s)
    source, partial = RUNNING, None
    if statistics is not None:
        source = GIVEN
    elif training:
        source, partial = OF_BATCH, _partial_moments(input, tiles)
    norm_map = _new_map(rstd, 3)
    tiles.finish(
        finish_statistics_kernel, device, momentum, eps, partial, statistics, running_mean, running_var,
        weight, bias, mean, rstd, norm_map, SOURCE=source,
    )  # fmt: skip
    tiles.launch(
        normalize_kernel, tiles.row_blocks, device,
        forward.Tensors(input, residual, norm_map, output, mask if save_mask else None), s.mask[1],
        ACTIVATION=activation,
    )  # fmt: skip
    return output, mean, rstd, mask


@implement("pyops_triton", "batch_norm_statistics")
def batch_norm_statistics(input: torch.Tensor, dim: int) -> torch.Tensor:
    """Mean and sum of squared deviations of each channel."""
    s = _Shape.of(input, dim, "batch_norm_statistics")
    if s.numel == 0:
        return torch.zeros((2, s.channels), dtype=torch.float64, device=input.device)
    result = torch.empty((2, s.channels), dtype=torch.float64, device=input.device)
    tiles = _Tiles.of(s)
    tiles.finish(merge_kernel, input.device, _partial_moments(input, tiles), result)
    return result


def _partial_sums(tensors: backward.Tensors, tiles: _Tiles, activation: Activation) -> torch.Tensor:
    """Every part's sums of g and of g (x - mean); g is the gradient of the activation's input."""
    s, device = tiles.shape, tensors.x.device
    parts, _ = tiles.parts
    partial = torch.empty((2, parts, s.channels), dtype=torch.float64, device=device)
    simple = activation.kind in (IDENTITY.value, RELU.value)  # others need registers of their own
    tiles.launch(
        gradient_sums_kernel, tiles.slices, device, tensors, partial, parts * s.channels, s.mask[1],
        ACTIVATION=activation, num_warps=4 if simple else 8,
    )  # fmt: skip
    return partial


@implement("pyops_triton", "batch_norm_backward")
def batch_norm_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    mask: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    mean_gradients: torch.Tensor | None,
    dim: int,
    training: bool,
    kind: int,
    alpha: float,
    beta: float,
    needs_input: bool,
    needs_affine: bool,
    needs_residual: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of input, weight, bias and residual."""
    op = "batch_norm_backward"
    tensors = backward.Tensors(grad_output, input, weight, bias, residual, mask, mean, rstd)
    activation = Activation(kind, alpha, beta)
    s = _check_backward(tensors, dim, activation, op)
    _check_pair(mean_gradients, op, "mean_gradients", input, s)
    grad_input = torch.empty_like(input) if needs_input else input.new_empty(0)
    grad_residual = torch.empty_like(input) if needs_residual else input.new_empty(0)
    like = next(t for t in (weight, bias, rstd) if t is not None)
    size = (s.channels if needs_affine else 0,)
    if s.numel == 0:
        return grad_input, like.new_zeros(size), like.new_zeros(size), grad_residual
    grad_weight, grad_bias = like.new_empty(size), like.new_empty(size)
    tiles, through = _Tiles.of(s), needs_input and training
    partial = None
    if needs_affine or (through and mean_gradients is None):
        partial = _partial_sums(tensors, tiles, activation)
    map_and_slopes = _new_map(rstd, 5)
    tiles.finish(
        finish_gradients_kernel, input.device, tensors, partial, mean_gradients,
        grad_weight if needs_affine else None, grad_bias if needs_affine else None, map_and_slopes,
        s.outer * s.inner, THROUGH=through,
    )  # fmt: skip
    if needs_input or needs_residual:
        tiles.launch(
            input_gradient_kernel, tiles.row_blocks, input.device, tensors, map_and_slopes,
            grad_input if needs_input else None, grad_residual if needs_residual else None, s.mask[1],
            ACTIVATION=activation, THROUGH=through,
        )  # fmt: skip
    return grad_input, grad_weight, grad_bias, grad_residual


@implement("pyops_triton", "batch_norm_backward_sums")
def batch_norm_backward_sums(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    mask: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    dim: int,
    kind: int,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    """Each channel's sums of g and of g (x - mean); g is the gradient of the activation's input."""
    tensors = backward.Tensors(grad_output, input, weight, bias, residual, mask, mean, rstd)
    activation = Activation(kind, alpha, beta)
    s = _check_backward(tensors, dim, activation, "batch_norm_backward_sums")
    if s.numel == 0:
        return torch.zeros((2, s.channels), dtype=torch.float64, device=input.device)
    tiles = _Tiles.of(s)
    result = torch.empty((2, s.channels), dtype=torch.float64, device=input.device)
    tiles.finish(add_kernel, input.device, _partial_sums(tensors, tiles, activation), result)
    return result
