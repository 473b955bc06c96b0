"""What GPUs can do at most, as their maker has published it.

Sources: the data sheets of H200, H100 and A100 (SXM; bandwidths, rates of tensor cores without sparsity), the
white papers of the architectures (multiprocessors, clocks, caches, 128 bytes a clock of L1 cache and shared
memory) and the CUDA programming guide (instructions a clock, sizes of a multiprocessor). The clock is that at
which the data sheet's FP32 rate holds: the highest, which a GPU under load may not keep. No bandwidth of the
L2 cache is published for Hopper, so that there is none here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Rates named ``fp32`` and the like are lanes a clock of one multiprocessor."""

    name: str
    multiprocessors: int
    clock: float  # Hz
    dram: float  # bytes per second
    l2_bytes: int
    fp32: int
    fp64: int
    shared_bytes: int  # of a multiprocessor, for all its blocks
    tensor: dict[str, float]  # FLOP/s by the operands' type
    special: int = 16
    shuffle: int = 32
    issue: int = 4  # warp instructions
    l1_bytes: int = 128
    shared_wavefronts: int = 1
    threads: int = 2048
    blocks: int = 32
    registers: int = 65536

    def resident_blocks(self, threads: int, registers: int, shared_bytes: int) -> tuple[int, str]:
        """Blocks that fit on one multiprocessor at the same time, and what keeps more out.

        Registers are dealt out to warps by 256, shared memory to blocks by 128 bytes with 1 KiB for the
        system; of an unknown number of registers, 0, there are enough.
        """
        warps = math.ceil(threads / 32)
        per_warp = math.ceil(32 * registers / 256) * 256
        limits = {
            "threads": self.threads // (32 * warps),
            "blocks": self.blocks,
            "shared": self.shared_bytes // (math.ceil((shared_bytes + 1024) / 128) * 128),
        }
        if registers:
            limits["registers"] = self.registers // per_warp // warps
        limit = min(limits, key=lambda name: limits[name])
        return limits[limit], limit


_HOPPER_TENSOR = {"float32": 494.7e12, "bfloat16": 989.4e12, "float16": 989.4e12, "float64": 66.9e12}

H200 = Gpu("H200", 132, 1.98e9, 4.8e12, 50 << 20, 128, 64, 228 << 10, _HOPPER_TENSOR)
H100 = Gpu("H100", 132, 1.98e9, 3.35e12, 50 << 20, 128, 64, 228 << 10, _HOPPER_TENSOR)
A100 = Gpu(
    *("A100", 108, 1.41e9, 2.039e12, 40 << 20, 64, 32, 164 << 10),
    {"float32": 156e12, "bfloat16": 312e12, "float16": 312e12, "float64": 19.5e12},
)
GPUS = (H200, H100, A100)
