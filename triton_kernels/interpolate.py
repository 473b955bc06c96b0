"""interpolate, nearest: a gather forward, a gather of sums backward; formula of csrc/math/interpolate.h."""

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl

from pyops._library import implement

from .tools.checks import check_dense, check_floating
from .tools.elements import block_of_elements, store_elements
from .tools.launch import cdiv, launch

_BLOCK = 1024
_BACKWARD_BLOCK = 512


def _float32(x: float) -> float:
    return ctypes.c_float(x).value


def _scale(input: int, output: int, factor: float) -> float:
    """Input elements per output element, as a float32."""
    return _float32(1.0 / factor) if factor > 0 else _float32(_float32(input) / _float32(output))


@cache
def _largest_count(input: int, output: int, factor: float, exact: bool) -> int:
    """The largest number of output elements that copy the same input element. (Cached: it tries them all.)"""
    scale, counts = _scale(input, output, factor), [0] * input
    for at in range(output):
        position = _float32(_float32(at + (0.5 if exact else 0.0)) * scale)
        counts[int(position) if position < _float32(input - 1) else input - 1] += 1
    return max(counts)


class _Shape:
    """A tensor as [outer, depth, height, width, inner]: ``own`` spatial sizes and those of the ``other``."""

    def __init__(
        self,
        tensor: torch.Tensor,
        name: str,
        sizes: Sequence[int],
        factors: Sequence[float],
        exact: bool,
        channels_last: bool,
        op: str,
    ) -> None:
        check_floating(tensor, op, name)
        check_dense(tensor, op, name, like=tensor, dtype=tensor.dtype)
        spatial = tensor.dim() - 2
        if spatial not in (1, 2, 3):
            raise RuntimeError(f"{op}: {name} must have 3 to 5 dimensions, got shape {tuple(tensor.shape)}")
        if len(sizes) != spatial or len(factors) != spatial:
            raise RuntimeError(
                f"{op}: expected {spatial} sizes and scale factors, got {len(sizes)} and {len(factors)}"
            )
        shape = tuple(tensor.shape)
        own = shape[1:-1] if channels_last else shape[2:]
        if min(*own, *sizes) <= 0:
            raise RuntimeError(f"{op}: sizes must be positive, got {own} and {tuple(sizes)}")
        if max(*own, *sizes) >= 2**31:
            raise RuntimeError(f"{op}: sizes must be below 2**31, got {own} and {tuple(sizes)}")
        if not all(factor >= 0 for factor in factors):
            raise RuntimeError(f"{op}: scale factors must not be negative, got {tuple(factors)}")
        ones = (1,) * (3 - spatial)
        self.own, self.other = ones + own, ones + tuple(sizes)
        self.factors = (0.0,) * (3 - spatial) + tuple(factors)
        self.exact = exact
        self.inner = shape[-1] if channels_last else 1
        self.result = (shape[0], *sizes, shape[-1]) if channels_last else (*shape[:2], *sizes)

    def scales(self, input: Sequence[int], output: Sequence[int]) -> list[float]:
        return [_scale(i, o, f) for i, o, f in zip(input, output, self.factors, strict=True)]


@implement("pyops_triton", "interpolate_nearest_forward")
def interpolate_nearest_forward(
    input: torch.Tensor,
    output_size: Sequence[int],
    scale_factors: Sequence[float],
    exact: bool,
    channels_last: bool,
) -> torch.Tensor:
    """``input`` [N, C, *spatial], or [N, *spatial, C] with ``channels_last``, resized to ``output_size``."""
    op = "interpolate_nearest_forward"
    s = _Shape(input, "input", output_size, scale_factors, exact, channels_last, op)
    output = torch.empty(s.result, dtype=input.dtype, device=input.device)
    if output.numel() > 0:
        launch(
            _forward_kernel, cdiv(output.numel(), _BLOCK), input.device, input, output, output.numel(),
            *s.own, *s.other, s.inner, *s.scales(s.own, s.other),
            EXACT=exact, WIDE=max(input.numel(), output.numel()) >= 2**31 - _BLOCK, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return output


@implement("pyops_triton", "interpolate_nearest_backward")
def interpolate_nearest_backward(
    grad_output: torch.Tensor,
    input_size: Sequence[int],
    scale_factors: Sequence[float],
    exact: bool,
    channels_last: bool,
) -> torch.Tensor:
    """Gradient of interpolate_nearest_forward's input, whose spatial size is ``input_size``."""
    op = "interpolate_nearest_backward"
    s = _Shape(grad_output, "grad_output", input_size, scale_factors, exact, channels_last, op)
    grad_input = torch.empty(s.result, dtype=grad_output.dtype, device=grad_output.device)
    if grad_input.numel() == 0:
        return grad_input
    input, output = s.other, s.own
    scales = s.scales(input, output)
    # For each dimension, the first output of each input element and one past the last.
    starts = torch.empty(sum(input) + 3, dtype=torch.int32, device=grad_output.device)
    launch(
        _starts_kernel, cdiv(starts.numel(), _BLOCK), starts.device, starts, *input, *output, *scales,
        max(output).bit_length(), EXACT=exact, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    most = [_largest_count(*axis, exact) for axis in zip(input, output, s.factors, strict=True)]
    launch(
        _backward_kernel, cdiv(grad_input.numel(), _BACKWARD_BLOCK), starts.device, grad_output, grad_input,
        starts, grad_input.numel(), *input, *output, s.inner, *most,
        WIDE=max(grad_output.numel(), grad_input.numel()) >= 2**31 - _BLOCK, BLOCK=_BACKWARD_BLOCK,
        num_warps=4,
    )  # fmt: skip
    return grad_input


@triton.jit
def _source(at, size, scale, EXACT: tl.constexpr):
    """The input index that output index ``at`` copies."""
    position = (at.to(tl.float32) + (0.5 if EXACT else 0.0)) * scale
    limit = size - 1
    # A position beyond the input, or NaN, must not become an integer.
    inside = position < limit.to(tl.float32)
    return tl.where(inside, tl.where(inside, position, 0.0).to(tl.int32), limit)


@triton.jit
def _as_tensor(value):
    """An argument as a tensor (the interpreter passes integers as constants)."""
    return tl.zeros([1], tl.int32) + value


@triton.jit
def _place(i, depth, height, width, inner):
    """Indices of element i of [outer, depth, height, width, inner]."""
    pixel = i // inner
    row = pixel // width
    plane = row // height
    outer = plane // depth
    return outer, plane - outer * depth, row - plane * height, pixel - row * width, i - pixel * inner


@triton.jit(do_not_specialize=["count"])
def _forward_kernel(
    x, y, count, in_d, in_h, in_w, out_d, out_h, out_w, inner,
    scale_d: tl.float32, scale_h: tl.float32, scale_w: tl.float32,
    EXACT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    i, full = block_of_elements(count, BLOCK)
    i = i.to(index)
    outer, d, h, w, c = _place(i, out_d, out_h, out_w, inner)
    d = _source(d, _as_tensor(in_d), scale_d, EXACT)
    h = _source(h, _as_tensor(in_h), scale_h, EXACT)
    w = _source(w, _as_tensor(in_w), scale_w, EXACT)
    at = (((outer * in_d + d) * in_h + h) * in_w + w) * inner + c
    store_elements(y, i, count, full, tl.load(x + at, mask=i < count))


@triton.jit
def _starts_kernel(
    starts, in_d, in_h, in_w, out_d, out_h, out_w,
    scale_d: tl.float32, scale_h: tl.float32, scale_w: tl.float32, steps,
    EXACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first output index whose source is a given index or a later one, by binary search."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    of_d = i <= in_d
    of_h = (i > in_d) & (i <= in_d + 1 + in_h)
    at = tl.where(of_d, i, tl.where(of_h, i - (in_d + 1), i - (in_d + in_h + 2)))
    size = tl.where(of_d, in_d, tl.where(of_h, in_h, in_w))
    scale = tl.where(of_d, scale_d, tl.where(of_h, scale_h, scale_w)).to(tl.float32)
    low = tl.zeros([BLOCK], tl.int32)
    high = tl.where(of_d, out_d, tl.where(of_h, out_h, out_w)).to(tl.int32)
    for _ in tl.range(0, steps):
        middle = (low + high) // 2
        searching = low < high
        smaller = _source(middle, size, scale, EXACT) < at
        low, high = (
            tl.where(searching & smaller, middle + 1, low),
            tl.where(searching & (smaller == 0), middle, high),
        )
    tl.store(starts + i, low, mask=i < in_d + in_h + in_w + 3)


@triton.jit(do_not_specialize=["count"])
def _backward_kernel(
    grad, dx, starts, count, in_d, in_h, in_w, out_d, out_h, out_w, inner, most_d, most_h, most_w,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    acc: tl.constexpr = tl.float64 if dx.dtype.element_ty == tl.float64 else tl.float32
    i, full = block_of_elements(count, BLOCK)
    i = i.to(index)
    exists = i < count
    outer, d, h, w, c = _place(i, in_d, in_h, in_w, inner)
    starts_h = starts + in_d + 1
    starts_w = starts_h + in_h + 1
    d0 = tl.load(starts + d, mask=exists, other=0)
    d1 = tl.load(starts + d + 1, mask=exists, other=0)
    h0 = tl.load(starts_h + h, mask=exists, other=0)
    h1 = tl.load(starts_h + h + 1, mask=exists, other=0)
    w0 = tl.load(starts_w + w, mask=exists, other=0)
    w1 = tl.load(starts_w + w + 1, mask=exists, other=0)
    total = tl.zeros([BLOCK], acc)
    for kd in tl.range(0, most_d):
        for kh in tl.range(0, most_h):
            row = ((outer * out_d + d0 + kd) * out_h + h0 + kh) * out_w
            in_row = (d0 + kd < d1) & (h0 + kh < h1)
            for kw in tl.range(0, most_w):
                at = (row + w0 + kw) * inner + c
                total += tl.load(grad + at, mask=in_row & (w0 + kw < w1), other=0.0).to(acc)
    store_elements(dx, i, count, full, total)
