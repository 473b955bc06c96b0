"""Cases of ``max_pool2d``: the stem of a ResNet, the halving of a VGG, a small image."""

from __future__ import annotations

from .tools.pooling import pool_case
from .tools.sizes import sweep

CASES = [
    pool_case("max_pool2d", (1, 8, 8, 8), (4, 4), overhead=True, kernel_size=2),
    pool_case(
        "max_pool2d", (32, 64, 112, 112), (56, 56),
        channels_last=True, quick=True, saved=1, kernel_size=3, stride=2, padding=1,
    ),
    pool_case(
        "max_pool2d", (32, 64, 112, 112), (56, 56), last=True, saved=1, kernel_size=3, stride=2, padding=1
    ),
    pool_case("max_pool2d", (32, 64, 112, 112), (56, 56), channels_last=True, saved=1, kernel_size=2),
    *sweep(lambda k: pool_case("max_pool2d", (k, 4, 16, 16), (8, 8), saved=1, kernel_size=2)),
    pool_case(
        "max_pool2d", (128, 64, 112, 112), (56, 56),
        channels_last=True, saved=1, devices=("cuda",), kernel_size=3, stride=2, padding=1,
    ),
]  # fmt: skip
