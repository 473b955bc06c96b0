"""Microseconds per call at the smallest size: what a function costs before it does any work.

Each op file marks its cases with ``overhead=True`` ([32, 10] or [32, 16]). pyops competes twice: as users
call it, with the rule for tiny tensors (``pyops.backends.prefers_torch``), and with its kernels asked for by
name. Timed on the host's clock, in long blocks; on a GPU the device is waited for once per block, so the
number is the larger of what the host and the device need per call.
"""

from __future__ import annotations

import torch

from .case import Case
from .clocks import host_clock
from .harness import Result, Settings, measure


def measure_overhead(case: Case, mode: str, device: torch.device, settings: Settings) -> Result:
    """pyops against torch eager and torch.compile."""
    return measure(case, mode, device, settings, clock=host_clock(device))
