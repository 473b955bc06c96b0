"""Which cases fill a GPU: those that move several times its L2 cache, or keep it busy for as long."""

from __future__ import annotations

import importlib

from ..measure.case import FORWARD_BACKWARD, Case

#: On an H200: three times the cache, and a tenth of a millisecond at its rate for 16-bit products.
LEAST_BYTES = 180 * 2**20
LEAST_FLOPS = 80 * 10**9


def cases_of(file: str) -> list[Case]:
    """The cases of one file, by its name."""
    cases: list[Case] = importlib.import_module(f"pyops.benchmarks.cases.{file}").CASES
    return cases


def fills(case: Case, mode: str) -> bool:
    traffic = case.traffic(mode)
    return traffic.total >= LEAST_BYTES or traffic.flops >= LEAST_FLOPS


def filling(file: str) -> list[tuple[Case, str]]:
    """The cases of a file that fill a GPU, each in the mode that does the most."""
    found = []
    for case in cases_of(file):
        modes = [FORWARD_BACKWARD] if FORWARD_BACKWARD in case.modes else list(case.modes[-1:])
        found += [(case, mode) for mode in modes if not case.overhead and "cuda" in case.devices]
    return [(case, mode) for case, mode in found if fills(case, mode)]
