"""The raw op gemm_ for the shared suite; it has no public function."""

from __future__ import annotations

import torch

from ..backends import Backend, raw


def _check_gemm(backend: Backend) -> None:
    a, b = torch.randn(67, 70, dtype=torch.float64), torch.randn(70, 131, dtype=torch.float64)
    out = torch.empty(67, 131, dtype=torch.float64)
    raw(backend, "gemm_")(out, a, b, 0.0)
    assert torch.allclose(out, a @ b, rtol=1e-12, atol=1e-12)


SMOKE_CHECKS = {"gemm": _check_gemm}


def valid_arguments() -> dict[str, tuple]:
    return {"gemm_": (torch.zeros(3, 2), torch.randn(3, 5), torch.randn(5, 2), 0.5)}
