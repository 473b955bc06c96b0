"""The ops under test: one module each, found by its name. Adding an op adds a file here.

A module may assign
``OPS``: public functions by name, with torch's counterpart and the float64 formula (:class:`..cases.Op`);
``SMOKE``: the cases of the few seconds' check (``suite/smoke.py``), of every code path of the CPU kernels;
``SMOKE_CHECKS``: further checks for it, functions of the backend by name;
``valid_arguments``: a function that gives valid arguments of each raw op, which the fuzzer spoils;
``run_sanitized``: a function of the emulated ops' namespace that AddressSanitizer watches;
``MUTANTS``: mistakes in the CPU sources that the smoke check must notice;
``TINY``: cases small enough for Triton's interpreter, of every code path of the Triton kernels;
``TRITON_MUTANTS``: mistakes in the Triton kernels that these cases must notice.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from ..cases import Op

MODULES: list[ModuleType] = [
    importlib.import_module(f"{__name__}.{path.stem}")
    for path in sorted(Path(__file__).parent.glob("[!_]*.py"))
]

OPS: dict[str, Op] = {name: op for module in MODULES for name, op in getattr(module, "OPS", {}).items()}
