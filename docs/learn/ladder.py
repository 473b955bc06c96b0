"""Ladders: one op in several versions, each compiled by g++ alone, put to one test and measured in turns.

    python docs/learn/ladder.py softmax_cross_entropy           # build, test, measure, print
    python docs/learn/ladder.py softmax_cross_entropy --write   # and keep the figures for the manual

A folder beside this file is a ladder: versions ``v1_*.cpp``, ``v2_*.cpp``, ..., an ``exercise.cpp``, and a
``task.py`` that says how a version is called, what is right, and what is measured.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread", *WARNINGS)
ROUNDS, BLOCK_SECONDS = 15, 0.03


def names() -> list[str]:
    return sorted(path.parent.name for path in HERE.glob("*/task.py"))


def task(name: str) -> ModuleType:
    """The ladder's ``task.py``."""
    spec = importlib.util.spec_from_file_location(f"ladder_{name}", HERE / name / "task.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def versions(name: str) -> list[Path]:
    """The sources in the order of the steps."""
    return sorted((HERE / name).glob("v*.cpp"))


def build(source: Path, folder: Path) -> ctypes.CDLL:
    """Compile one file, which includes nothing of ours, unless it is as it was, and load it."""
    library = folder / f"{source.parent.name}_{source.stem}.so"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
        unfinished = library.with_suffix(".part")
        subprocess.run([*compiler.split(), *FLAGS, str(source), "-o", str(unfinished)], check=True)
        unfinished.replace(library)
    return ctypes.CDLL(str(library))


def pointer(tensor: Any) -> ctypes.c_void_p:
    """A tensor as a version takes it: contiguous, by its address."""
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def measure(name: str, folder: Path) -> list[dict[str, str]]:
    """A row for each version, pyops and torch: the median time, taken in turns, and what it makes of it."""
    import torch

    module = task(name)
    inputs = module.large_case()
    calls: dict[str, Callable[[], object]] = {
        source.stem: module.timed(build(source, folder), inputs) for source in versions(name)
    }
    calls |= {"pyops": module.ours(inputs), "torch": module.theirs(inputs)}
    machine = build(HERE / "machine.cpp", folder)
    hertz, arithmetic = _clock(machine), module.FLOPS(inputs) / _arithmetic_rate(machine)
    floor = max(module.BYTES(inputs) / _copy_bandwidth(torch), arithmetic)
    seconds: dict[str, list[float]] = {key: [] for key in calls}
    for round_ in range(ROUNDS + 2):  # the first two warm up
        for key, call in calls.items():
            per_call = _block(call)
            if round_ >= 2:
                seconds[key].append(per_call)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    first = next(iter(medians.values()))
    return [
        {
            "version": key,
            "ms": f"{1e3 * value:.3g}",
            "times faster than the first": f"{first / value:.3g}",
            f"cycles per {module.UNIT}": f"{hertz * value / module.UNITS(inputs):.3g}",
            "GFLOP/s": f"{module.FLOPS(inputs) / value / 1e9:.3g}",
            "of the floor": f"{floor / value:.0%}",
        }
        for key, value in medians.items()
    ]


def _block(call: Callable[[], object]) -> float:
    """Seconds a call takes where it is repeated for a while."""
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < BLOCK_SECONDS:
        call()
        count += 1
    return (time.perf_counter() - began) / count


def _copy_bandwidth(torch: ModuleType) -> float:
    """Bytes per second, read and written, of a copy far beyond the caches: what most versions run against."""
    source = torch.rand(32 * 2**20)
    target = torch.empty_like(source).fill_(0)
    return 2 * source.nbytes / _best(lambda: target.copy_(source))


def _arithmetic_rate(machine: ctypes.CDLL) -> float:
    """FLOPs per second of all cores that only multiply and add: what bounds versions that compute much."""
    count = 2_000_000
    machine.multiply_adds.restype = ctypes.c_int64
    operations: int = machine.multiply_adds(ctypes.c_int64(count))
    return operations / _best(lambda: machine.multiply_adds(ctypes.c_int64(count)))


def _clock(machine: ctypes.CDLL) -> float:
    """Cycles per second of a core that is busy: a turn of the loop takes one."""
    count = 10_000_000
    return count / _best(lambda: machine.turns(ctypes.c_int64(count)))


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(8):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def keep_memory() -> None:
    """Let glibc keep what is freed: whether it does by itself depends on what the process has freed before,
    and with it, up to a factor of 3, the times of whoever allocates at each call."""
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    for option, value in ((trim_threshold, 2**31 - 1), (mmap_threshold, 2**25)):
        ctypes.CDLL(None).mallopt(option, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ladder", choices=names())
    parser.add_argument("--write", action="store_true", help="write measured.csv beside the versions")
    arguments = parser.parse_args()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    keep_memory()
    sys.path.insert(0, str(HERE.parents[1]))
    folder = HERE.parents[1] / "build" / "ladders"
    folder.mkdir(parents=True, exist_ok=True)
    for source in versions(arguments.ladder):
        task(arguments.ladder).check(build(source, folder))
    rows = measure(arguments.ladder, folder)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if arguments.write:
        from pyops.benchmarks.measure import cpu

        machine = f"{cpu.name()}, {os.cpu_count()} cores"
        with (HERE / arguments.ladder / "measured.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["machine", *rows[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows({"machine": machine, **row} for row in rows)


if __name__ == "__main__":
    main()
