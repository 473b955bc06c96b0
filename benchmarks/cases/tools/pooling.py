"""What the cases of the pooling ops share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ...measure.case import FORWARD, FORWARD_BACKWARD, Case, Traffic


def _traffic(elements: int, outputs: int, window: int, saved: int) -> Callable[[str], Traffic]:
    """float32: forward reads the input and writes the output and what it saves; backward the reverse."""

    def traffic(mode: str) -> Traffic:
        read, written, flops = 4 * elements, (4 + saved) * outputs, window * outputs
        if mode == FORWARD_BACKWARD:
            return Traffic(read + written, written + read, 2 * flops)
        return Traffic(read, written, flops)

    return traffic


def pool_case(
    op: str,
    shape: tuple[int, ...],
    pooled: tuple[int, int],
    /,
    *,
    saved: int = 0,
    overhead: bool = False,
    quick: bool = False,
    channels_last: bool = False,
    last: bool = False,
    devices: tuple[str, ...] = ("cpu", "cuda"),
    **options: Any,
) -> Case:
    """A case on images of ``shape`` and outputs of height and width ``pooled``.

    ``saved`` bytes per output are kept for backward. ``channels_last``: torch's way in that format competes;
    ``last``: all do in it.
    """
    outputs = math.prod(shape[:2]) * math.prod(pooled)
    kernel = options.get("kernel_size")
    window = kernel**2 if kernel else math.prod(shape) // outputs
    settings = "".join(f" {name[0]}{value}" for name, value in options.items())
    settings += ", channels_last" if last else ""
    format = torch.channels_last if last else torch.contiguous_format
    return Case(
        op,
        f"{list(shape)}{settings}",
        inputs=lambda device: {"input": torch.randn(shape, device=device).to(memory_format=format)},
        traffic=_traffic(math.prod(shape), outputs, window, saved),
        options=options,
        modes=(FORWARD, FORWARD_BACKWARD),
        overhead=overhead,
        quick=quick,
        devices=devices,
        channels_last=channels_last,
    )
