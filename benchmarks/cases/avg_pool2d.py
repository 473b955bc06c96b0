"""Cases of ``avg_pool2d`` and ``adaptive_avg_pool2d``: LeNet's halving, the global average of a ResNet."""

from __future__ import annotations

from .tools.pooling import pool_case

CASES = [
    pool_case("avg_pool2d", (1, 8, 8, 8), (4, 4), overhead=True, kernel_size=2),
    pool_case("avg_pool2d", (256, 6, 28, 28), (14, 14), quick=True, kernel_size=2),
    pool_case(
        "avg_pool2d", (32, 64, 112, 112), (56, 56), channels_last=True, kernel_size=3, stride=2, padding=1
    ),
    pool_case("adaptive_avg_pool2d", (1, 8, 8, 8), (1, 1), overhead=True, output_size=1),
    pool_case("adaptive_avg_pool2d", (32, 512, 7, 7), (1, 1), channels_last=True, quick=True, output_size=1),
    pool_case("adaptive_avg_pool2d", (16, 256, 56, 56), (7, 7), channels_last=True, output_size=7),
    pool_case(
        "adaptive_avg_pool2d",
        (128, 512, 28, 28),
        (1, 1),
        channels_last=True,
        devices=("cuda",),
        output_size=1,
    ),
]
