"""A tensor times a number; the formula is csrc/math/toy_scale.h."""

import torch
import triton
import triton.language as tl

from pyops._library import implement

from .tools.checks import check_floating, check_packed
from .tools.elements import block_of_elements, launch_elementwise, load_elements, store_elements


@triton.jit
def _kernel(x_ptr, y_ptr, n: tl.int64, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    i, full = block_of_elements(n, BLOCK)
    store_elements(y_ptr, i, n, full, load_elements(x_ptr, i, n, full) * FACTOR)


@implement("pyops_triton", "toy_scale")
def toy_scale(input: torch.Tensor, factor: float) -> torch.Tensor:
    """``input`` times ``factor``, in its shape, dtype and strides."""
    check_floating(input, "toy_scale", "input")
    check_packed(input, "toy_scale", "input")
    output = torch.empty_like(input)
    launch_elementwise(_kernel, (input, output), FACTOR=float(factor))
    return output
