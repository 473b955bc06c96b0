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

from tests.suite.mutants import TritonMutant

from . import cpp, rules, triton

#: Mutants that cannot be noticed, and why: file, function, line as it is, line as it is with the mistake.
EQUIVALENT: dict[tuple[str, str, str, str], str] = {
    (
        "batch_norm/forward.py",
        "normalize_kernel",
        "z = tl.fma(x - center, scale + tl.zeros_like(x), shift + tl.zeros_like(x))",
        "z = tl.fma(x - center, scale - tl.zeros_like(x), shift + tl.zeros_like(x))",
    ): "what is subtracted is 0",
    (
        "pooling/windows.py",
        "first_tap",
        "return tl.where(start >= 0, 0, (-start + dilation - 1) // dilation)",
        "return tl.where(start > 0, 0, (-start + dilation - 1) // dilation)",
    ): "both branches give 0 at 0",
    (
        "tools/activation.py",
        "activate",
        "return tl.where(x < 0.0, expm1(x) * _SELU_SATURATION, x * _SELU_SCALE)",
        "return tl.where(x <= 0.0, expm1(x) * _SELU_SATURATION, x * _SELU_SCALE)",
    ): "both branches give 0 at 0",
}


def equivalent(mutants: dict[str, TritonMutant]) -> dict[str, str]:
    """Names of those of ``mutants`` that cannot be noticed, and why.

    Raises:
        ValueError: one of :data:`EQUIVALENT` is not among them: the kernel has changed.
    """
    keys = {
        (m.file, rules.function_at(m.path.read_text(), m.line), m.old.strip(), m.new.strip()): name
        for name, m in mutants.items()
        if m.line is not None
    }
    if gone := [key for key in EQUIVALENT if key not in keys]:
        raise ValueError(f"no such mutants: {gone}")
    return {keys[key]: why for key, why in EQUIVALENT.items()}


#: By mutant, what noticed it; None where nothing did.
Verdicts = dict[str, str | None]


def cpp_verdicts(folder: Path) -> Verdicts:
    alive = cpp.survivors(folder, list(cpp.MUTANTS))
    return {name: None if name in alive else "the smoke check" for name in cpp.MUTANTS}


def triton_verdicts(folder: Path) -> Verdicts:
    mutants = {**triton.NAMED, **triton.drawn()}
    verdicts, same = triton.caught(folder, mutants), equivalent(mutants)
    for name, by in verdicts.items():
        if by is None and name not in same:
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
    rows, alive, same = [], [], equivalent(triton.drawn())
    for backend in asked:
        with tempfile.TemporaryDirectory() as folder:
            verdicts = BACKENDS[backend](Path(folder))
        counted = {name: by for name, by in verdicts.items() if name not in same}
        noticed = sum(by is not None for by in counted.values())
        rows.append((backend, len(counted), noticed))
        alive += [f"{backend}: {name}" for name, by in counted.items() if by is None]
        for name, by in verdicts.items():
            print(f"{backend:8} {name:60} {by or same.get(name, 'SURVIVES')}", flush=True)
    print(f"\n{'':10} {'mutants':>8} {'noticed':>8}   score")
    for backend, number, noticed in [*rows, ("all", *(sum(r[i] for r in rows) for i in (1, 2)))]:
        print(f"{backend:10} {number:8} {noticed:8}  {100 * noticed / number:5.1f} %")
    print("\n".join(["", "not noticed:", *alive]) if alive else "\nall were noticed")
    sys.exit(sum(r[2] for r in rows) < 0.95 * sum(r[1] for r in rows))


if __name__ == "__main__":
    main()
