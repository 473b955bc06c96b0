"""``python -m tests.mutation [cpp] [triton] [cuda]``: breaks kernels one at a time, counts what is noticed.

A table with the score of each backend, and those that nothing noticed. ``cuda`` edits the PTX of nvcc and of
Triton and runs it in the PTX machine; it needs the CUDA library. Exits with 1 below 95 %.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import cpp, triton

#: Mutants that cannot be noticed, and why.
EQUIVALENT: dict[str, str] = {
    "batch_norm_forward_190_difference": "what is subtracted is 0",
    "pooling_windows_221_one_less": "both branches give 0 at 0",
    "tools_activation_65_off_by_one": "both branches give 0 at 0",
}

#: By mutant, what noticed it; None where nothing did.
Verdicts = dict[str, str | None]


def cpp_verdicts(folder: Path) -> Verdicts:
    alive = cpp.survivors(folder, list(cpp.MUTANTS))
    return {name: None if name in alive else "the smoke check" for name in cpp.MUTANTS}


def triton_verdicts(folder: Path) -> Verdicts:
    mutants = {**triton.NAMED, **triton.drawn()}
    verdicts = triton.caught(folder, mutants)
    for name, by in verdicts.items():
        if by is None and name not in EQUIVALENT:
            verdicts[name] = triton.noticed_by_tests(folder, mutants[name])
            print(f"not by the cases, but by the tests: {name}: {verdicts[name]}", flush=True)
    return verdicts


def cuda_verdicts(folder: Path) -> Verdicts:
    from tests.ptx_machine import nvcc

    if reason := nvcc.missing_reason():
        sys.exit(f"cuda: {reason}")
    nvcc.load()
    planted = importlib.import_module("tests.ptx_machine.planted")
    return {name: planted.plant(fault)[0] for name, fault in planted.FAULTS.items()}


BACKENDS: dict[str, Callable[[Path], Verdicts]] = {
    "cpp": cpp_verdicts,
    "triton": triton_verdicts,
    "cuda": cuda_verdicts,
}


def main() -> None:
    asked = sys.argv[1:] or list(BACKENDS)
    rows, alive = [], []
    for backend in asked:
        with tempfile.TemporaryDirectory() as folder:
            verdicts = BACKENDS[backend](Path(folder))
        counted = {name: by for name, by in verdicts.items() if name not in EQUIVALENT}
        noticed = sum(by is not None for by in counted.values())
        rows.append((backend, len(counted), noticed))
        alive += [f"{backend}: {name}" for name, by in counted.items() if by is None]
        for name, by in verdicts.items():
            print(f"{backend:8} {name:60} {by or EQUIVALENT.get(name, 'SURVIVES')}", flush=True)
    print(f"\n{'':10} {'mutants':>8} {'noticed':>8}   score")
    for backend, number, noticed in [*rows, ("all", *(sum(r[i] for r in rows) for i in (1, 2)))]:
        print(f"{backend:10} {number:8} {noticed:8}  {100 * noticed / number:5.1f} %")
    print("\n".join(["", "not noticed:", *alive]) if alive else "\nall were noticed")
    sys.exit(sum(r[2] for r in rows) < 0.95 * sum(r[1] for r in rows))


if __name__ == "__main__":
    main()
