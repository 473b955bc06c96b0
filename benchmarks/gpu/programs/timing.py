"""Times of cases of the files given.

By section: ``results`` of what fills a GPU; ``overhead`` per call; ``compile``, with torch.compile among the
baselines.
"""

from __future__ import annotations

import functools
import importlib
import sys
from dataclasses import replace
from typing import Any

import torch

from pyops import backends

from ...measure import ceilings, machine
from ...measure.case import Case
from ...measure.clocks import GraphClock, HostClock
from ...measure.contenders import build, kernel_backends
from ...measure.device import DryRun, Gpu, opened
from ...measure.harness import Result, Settings, check, measure
from .. import worker
from ..filling import cases_of, filling

Device = Gpu | DryRun

#: At most two seconds a case, of which the checks take a part.
_TIMED = Settings(warmup_s=0.04, block_s=0.004, budget_s=0.6, min_rounds=5, max_rounds=25, compile=False)
SETTINGS = {
    "results": _TIMED,
    "overhead": replace(_TIMED, block_s=0.01, budget_s=0.3, max_rounds=15),
    "compile": replace(_TIMED, budget_s=0.4, max_rounds=15, compile=True),
}
_ONCE = replace(_TIMED, warmup_s=0.0, block_s=0.0, budget_s=0.0, min_rounds=3, max_rounds=3)


def chosen(section: str, files: list[str], device: Device) -> list[tuple[Case, str]]:
    """The cases of a section with their modes. A dry run takes the first small one of each file."""
    if device.stand_in:
        small = [[c for c in cases_of(file) if c.overhead][:1] for file in files]
        return [(case, case.modes[-1]) for found in small for case in found]
    if section == "results":
        return [pair for file in files for pair in filling(file)]
    wanted = [c for file in files for c in cases_of(file) if "cuda" in c.devices]
    found = [c for c in wanted if (c.overhead if section == "overhead" else c.quick and not c.overhead)]
    return [(case, mode) for case in found for mode in case.modes]


def timed(case: Case, mode: str, section: str, device: Device, kernels: list[str]) -> dict[str, Any]:
    settings = _ONCE if device.stand_in else SETTINGS[section]
    clock = HostClock(device.synchronize) if section == "overhead" else GraphClock(device)
    try:
        result = measure(case, mode, device.device, settings, clock=clock, kernels=kernels)
    finally:
        del clock  # its graphs keep memory
        device.release_memory()
    return {"section": section, "result": result.as_dict()}


def rehearse(pairs: list[tuple[Case, str]], device: Device, kernels: list[str]) -> None:
    """Check every case once, so that all is compiled; what fails fails again when it is timed."""

    def one(case: Case, mode: str) -> None:
        with backends.use_backend(None):
            made = build(case, mode, device.device, compiled=False, kernels=kernels)
            check(case, mode, made, Result(case.name, case.op, mode, "", "", ""))

    for case, mode in pairs:
        try:
            one(case, mode)
        except Exception as error:
            print(f"rehearsal of {case.name} {mode}: {type(error).__name__}: {error}")
        device.release_memory()
    if "triton" in kernels:  # it timed launches while others used the GPU
        importlib.import_module("pyops.triton_kernels.tools.tuning").forget_times()


def stamp(device: Device) -> dict[str, Any]:
    return {"machine": machine.stamp(device.device)}


def measured_ceilings(device: Device) -> dict[str, Any]:
    found = ceilings.measure(device.device, quick=device.stand_in)
    return {"ceilings": found.as_dict() | {"text": found.describe()}}


def main() -> int:
    parser = worker.parser(__doc__)
    parser.add_argument("--section", choices=SETTINGS, default="results")
    parser.add_argument("files", nargs="+", help="files of cases, or machine: its facts and ceilings")
    given = parser.parse_args()
    device = opened(given.device)
    if device.stand_in:
        torch.backends.cudnn.allow_tf32 = False  # which torch has not on the CPU
    items: dict[str, worker.Item]
    if given.files == ["machine"]:
        items = {"machine": lambda: stamp(device), "ceilings": lambda: measured_ceilings(device)}
        return worker.work(items, device, given)
    if device.stand_in:
        kernels = [device.backend("cuda"), device.backend("triton")]
    else:
        kernels = kernel_backends(device.device)
    pairs = chosen(given.section, given.files, device)
    items = {
        f"{case.name} {mode}": functools.partial(timed, case, mode, given.section, device, kernels)
        for case, mode in pairs
    }
    left = worker.remaining(items, given.after)
    todo = [(case, mode) for case, mode in pairs if f"{case.name} {mode}" in left]
    # A process that takes over from another does not disturb those that are being timed.
    first = not given.again and given.section == "results"
    return worker.work(items, device, given, (lambda: rehearse(todo, device, kernels)) if first else None)


if __name__ == "__main__":
    sys.exit(main())
