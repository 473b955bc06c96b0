"""What this machine can do at most, measured once per run: copy and read bandwidth, GEMM rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .case import Traffic, dtype_name
from .clocks import Clock, device_clock


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second and FLOPs per second; the best of several blocks, as a ceiling should be."""

    copy: float
    read: float
    gemm: dict[str, float] = field(default_factory=dict)

    def floor_seconds(self, traffic: Traffic, dtype: torch.dtype) -> float:
        """The least time for ``traffic``: the longer of moving its bytes and doing its arithmetic.

        As many reads as there are writes go at the copy rate, reads beyond them at the read rate.
        """
        paired = min(traffic.read, traffic.written)
        seconds = 2 * paired / self.copy + (traffic.read - paired) / self.read
        seconds += (traffic.written - paired) / self.copy
        rate = self.gemm.get(dtype_name(dtype)) or self.gemm.get("float32")
        return max(seconds, traffic.flops / rate if rate else 0.0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in self.gemm.items())
        return (
            f"copy {self.copy / 1e9:.1f} GB/s (read + written), read {self.read / 1e9:.1f} GB/s, "
            f"GEMM {rates or 'not measured'}"
        )


def measure(device: torch.device, *, quick: bool = False) -> Ceilings:
    """Measure ``device``: tensors far beyond the caches, square matrix products.

    Read bandwidth is the best of ``sum``, ``dot`` and the copy rate: a reduction that torch does at
    less than memory speed must not set the ceiling too low.
    """
    cuda = device.type == "cuda"
    if cuda:
        free = torch.cuda.mem_get_info(device)[0]
        nbytes = min(4 * 2**30, free // 8)
    else:
        nbytes = (128 if quick else 512) * 2**20
    clock = device_clock(device)
    repeats = 3 if quick else 7
    copy, read = _bandwidth(device, nbytes // 4, clock, repeats)
    return Ceilings(copy, read, _gemm_rates(device, clock, repeats, quick))


def _bandwidth(device: torch.device, count: int, clock: Clock, repeats: int) -> tuple[float, float]:
    source = torch.rand(count, device=device)  # written, so that every page exists
    target = torch.rand(count, device=device)
    nbytes = 4 * count
    copy = _best(clock, lambda: target.copy_(source), repeats)
    total = _best(clock, lambda: source.sum(), repeats)
    dot = _best(clock, lambda: torch.dot(source, target), repeats)
    copy_rate = 2 * nbytes / copy
    return copy_rate, max(nbytes / total, 2 * nbytes / dot, copy_rate)


def _gemm_rates(device: torch.device, clock: Clock, repeats: int, quick: bool) -> dict[str, float]:
    cuda = device.type == "cuda"
    size = 8192 if cuda else (1024 if quick else 2048)
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if cuda else [])]
    rates = {}
    for dtype in dtypes:
        # bfloat16 without matrix instructions would take seconds at the full size on a CPU.
        n = size if cuda or dtype == torch.float32 else size // 2
        a = torch.randn(n, n, device=device).to(dtype)
        b = torch.randn(n, n, device=device).to(dtype)
        rates[dtype_name(dtype)] = 2 * n**3 / _best(clock, _product(a, b), repeats)
        if cuda and dtype == torch.float32:
            rates["tf32"] = 2 * n**3 / _best(clock, _product(a, b), repeats, tf32=True)
    return rates


def _product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    out = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype, device=a.device)
    return lambda: torch.mm(a, b, out=out)


def _best(clock: Clock, call: Callable[[], Any], repeats: int, *, tf32: bool = False) -> float:
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        call()
        return min((clock.block(call, 2, None) for _ in range(repeats)), default=math.nan)
    finally:
        products.fp32_precision = before
