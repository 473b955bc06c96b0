"""A small program for compute-sanitizer: every op, every CUDA backend, small and odd sizes.

Takes the overhead cases and the quick cases that move little memory, so a new op is in the
sample as soon as it has a benchmark file. Results are not compared here (the test suite does that).
"""

from __future__ import annotations

import sys

import torch

from pyops import backends

from . import cases
from .measure import contenders

_MOST_BYTES = 64 * 2**20


def main() -> int:
    device = torch.device("cuda", torch.cuda.current_device())
    sample = cases.select([], device, overhead=True)
    sample += [
        case
        for case in cases.select([], device, quick=True)
        if case.traffic(case.modes[-1]).total <= _MOST_BYTES
    ]
    ran = 0
    with backends.use_backend(None):
        for case in sample:
            for mode in case.modes:
                for contender in contenders.build(case, mode, device, compiled=False):
                    if contender.subject:
                        contender.run()
                        torch.cuda.synchronize(device)
                        ran += 1
            print(f"ran {case.name}", flush=True)
    print(f"{ran} calls on {torch.cuda.get_device_name(device)}")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
