"""The raw op gemm_ for the shared suite; it has no public function."""

from __future__ import annotations

import torch

from ..backends import Backend, raw
from ..triton_cases import BF16, F16, F32, F64, fp32_precision, meta


def _check_gemm(backend: Backend) -> None:
    a, b = torch.randn(67, 70, dtype=torch.float64), torch.randn(70, 131, dtype=torch.float64)
    out = torch.empty(67, 131, dtype=torch.float64)
    raw(backend, "gemm_")(out, a, b, 0.0)
    assert torch.allclose(out, a @ b, rtol=1e-12, atol=1e-12)


SMOKE_CHECKS = {"gemm": _check_gemm}


def valid_arguments() -> dict[str, tuple]:
    return {"gemm_": (torch.zeros(3, 2), torch.randn(3, 5), torch.randn(5, 2), 0.5)}


def _triton(
    m: int, n: int, k: int, dtype: torch.dtype, layout: str = "nn", out: torch.dtype | None = None,
    beta: float = 0.0, tf32: bool = False,
) -> None:  # fmt: skip
    from pyops.triton_kernels import gemm

    a = meta(m, k, dtype=dtype) if layout[0] == "n" else meta(k, m, dtype=dtype).t()
    b = meta(k, n, dtype=dtype) if layout[1] == "n" else meta(n, k, dtype=dtype).t()
    with fp32_precision(torch.backends.cuda.matmul, "tf32" if tf32 else "ieee"):
        gemm.gemm_(meta(m, n, dtype=out or dtype), a, b, beta)


TRITON_CASES = {
    "gemm-nn-bfloat16": lambda: _triton(4096, 4096, 4096, BF16),
    "gemm-nt-bfloat16": lambda: _triton(4096, 32000, 2048, BF16, "nt"),
    "gemm-tn-accumulate-bfloat16": lambda: _triton(32000, 2048, 4096, BF16, "tn", F32, 1.0),
    "gemm-eights-nn-bfloat16": lambda: _triton(1000, 1000, 1000, BF16),
    "gemm-eights-nt-float16": lambda: _triton(1000, 72, 200, F16, "nt"),
    "gemm-eights-tn-bfloat16": lambda: _triton(1000, 72, 4100, BF16, "tn", F32, 1.0),
    "gemm-vocabulary-bfloat16": lambda: _triton(4096, 2048, 50257, BF16, "nn", F32),
    "gemm-odd-float16": lambda: _triton(1001, 777, 333, F16, "tt", F16, 0.5),
    "gemm-small-bfloat16": lambda: _triton(64, 64, 128, BF16, "nt", F32),
    "gemm-split-tn-bfloat16": lambda: _triton(512, 512, 16384, BF16, "tn"),
    "gemm-nt-float32": lambda: _triton(4096, 4096, 4096, F32, "nt", beta=1.0),
    "gemm-small-float32": lambda: _triton(64, 100, 64, F32),
    "gemm-nt-tf32": lambda: _triton(4096, 4096, 4096, F32, "nt", tf32=True),
    "gemm-tn-float64": lambda: _triton(512, 512, 512, F64, "tn", beta=1.0),
}
TRITON_PRODUCTS = {"gemm-.*(float16|tf32)$": ["_gemm_kernel"]}
