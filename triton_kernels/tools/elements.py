"""Elementwise kernels: one program takes ``ELEMENTS`` neighbouring elements.

Its accesses are masked in the last program only, because Triton splits masked accesses unless it knows that
16 divides the number of elements.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from .launch import cdiv, launch

ELEMENTS = 1024


def launch_elementwise(kernel: Any, tensors: Sequence[torch.Tensor], **meta: Any) -> None:
    """Run ``kernel(*pointers, n, **meta, BLOCK)`` over the elements of equally laid out ``tensors``."""
    n = tensors[0].numel()
    if n > 0:
        launch(kernel, cdiv(n, ELEMENTS), tensors[0].device, *tensors, n, BLOCK=ELEMENTS, num_warps=4, **meta)


@triton.jit
def block_of_elements(n, BLOCK: tl.constexpr):
    """Indices of this program's elements, and whether all of them exist."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    return first + tl.arange(0, BLOCK), first + BLOCK <= n


@triton.jit
def load_elements(pointer, i, n, full):
    """Elements ``i`` of ``pointer``, in the dtype they are computed in; 0 past the end."""
    acc: tl.constexpr = tl.float64 if pointer.dtype.element_ty == tl.float64 else tl.float32
    if full:  # noqa: SIM108 (a conditional expression would evaluate both)
        x = tl.load(pointer + i)
    else:
        x = tl.load(pointer + i, mask=i < n, other=0.0)
    return x.to(acc)


@triton.jit
def store_elements(pointer, i, n, full, x):
    y = x.to(pointer.dtype.element_ty)
    if full:
        tl.store(pointer + i, y)
    else:
        tl.store(pointer + i, y, mask=i < n)
