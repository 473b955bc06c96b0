"""The ops under test: one module each, found by its name. Adding an op adds a file here.

A module may assign
``OPS``: public functions by name, with torch's counterpart and the float64 formula (:class:`..cases.Op`);
``CONTRACT``: the checks of ``test_contract.py`` with the cases they take (:class:`..contract.Contract`);
``LAYERS``: by the name of each module of pyops.nn, the arguments with which ``test_nn.py`` builds it;
``SMOKE``: the cases of the few seconds' check (``suite/smoke.py``), of every code path of the CPU kernels;
``SMOKE_CHECKS``: further checks for it, functions of the backend by name;
``valid_arguments``: a function that gives valid arguments of each raw op, which ``tests/hostile`` spoils;
``run_sanitized``: a function of the emulated ops' namespace that AddressSanitizer watches;
``CUDA_CODE``: by CUDA source, what its machine code must have (:class:`..cuda_code.Code`); [] of one without
    kernels;
``MUTANTS``: mistakes in the CPU sources that the smoke check must notice;
``TINY``: cases small enough for Triton's interpreter, of every code path of the Triton kernels;
``TRITON_CASES``: calls of the Triton launchers whose kernels are compiled for GPUs, by name;
``TRITON_PRODUCTS``: by a pattern of such names, the kernels that must run on tensor cores;
``TRITON_MUTANTS``: mistakes in the Triton kernels that the ``TINY`` cases must notice.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from ..cases import Op

MODULES: list[ModuleType] = [
    importlib.import_module(f"{__name__}.{path.stem}")
    for path in sorted(Path(__file__).parent.glob("[!_]*.py"))
]


def joined(name: str) -> dict[str, Any]:
    """The dictionaries that modules assign to ``name``, as one."""
    return {key: value for module in MODULES for key, value in getattr(module, name, {}).items()}


OPS: dict[str, Op] = joined("OPS")
