"""Matrix multiply-accumulate, the building block of the fused linear ops. Not a public function.

Kernels: ``csrc/cpu/gemm/gemm.cpp`` and ``triton_kernels/gemm.py``; CUDA C++ uses the vendor's library through
torch, which no kernel of ours would beat.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library

_library.define(
    "gemm_",
    "(Tensor(a!) out, Tensor a, Tensor b, float beta) -> ()",
    lambda out, a, b, beta: None,
)


def library_gemm_(out: Tensor, a: Tensor, b: Tensor, beta: float) -> None:
    """out = a @ b + beta * out by torch's own GEMM; 16-bit products accumulate in float32."""
    if out is None or a is None or b is None:  # as which a raw op gets a tensor that is undefined
        raise RuntimeError("gemm_: out, a and b must be tensors, got None")
    if out.shape != (a.size(0), b.size(1)):  # torch would resize it
        raise RuntimeError(f"gemm_: out must have shape {(a.size(0), b.size(1))}, got {tuple(out.shape)}")
    if out.dtype is a.dtype:
        torch.addmm(out, a, b, beta=beta, out=out)
    elif a.is_cuda:
        torch.addmm(out, a, b, out.dtype, beta=beta, out=out)
    else:
        torch.addmm(out, a.to(out.dtype), b.to(out.dtype), beta=beta, out=out)


torch.library.impl("pyops::gemm_", "CUDA")(library_gemm_)
