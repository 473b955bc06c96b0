"""Whether the kernels of a backend can run here: found out before a first call could crash."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from typing import Any

import torch

from . import _library


def build_facts() -> dict[str, Any]:
    """What the build says of itself (setup.py), or ``missing`` with the reason why it does not."""
    try:
        text = (_library.LIBRARY_DIR / "build_facts.json").read_text(encoding="utf-8")
    except OSError as error:
        return {"missing": f"the build facts are not available: {error}"}
    facts: dict[str, Any] = json.loads(text)
    return facts


# ----------------------------------------------------------------------------------------------- CUDA C++


def cuda_reason(index: int) -> str | None:
    """Why the CUDA library cannot serve the GPU of that number; None when it can."""
    if error := _library.load_errors.get("cuda"):
        return error
    facts = build_facts()
    if not facts.get("cuda_archs") or not torch.cuda.is_available():
        return None  # nobody knows; or there is no GPU, and calls can be traced only
    major, minor = torch.cuda.get_device_capability(index)
    if _has_code(facts, (major, minor)):
        return None
    return (
        f"{_library.loaded['cuda']} has no code for {torch.cuda.get_device_name(index)}, a GPU of compute "
        f"capability {major}.{minor}: it was built for {', '.join(facts['cuda_archs'])} (reinstall with "
        f"TORCH_CUDA_ARCH_LIST={major}.{minor})"
    )


def _has_code(facts: dict[str, Any], capability: tuple[int, int]) -> bool:
    """Machine code runs on later minor versions of its GPU, 9.0a on that GPU alone, PTX on all later ones."""
    for arch in facts["cuda_archs"]:
        name = re.fullmatch(r"(\d+)\.(\d)(a?)f?(?:\+PTX)?", arch)
        if name is None:
            continue
        built = int(name[1]), int(name[2])
        if built == capability or (not name[3] and built[0] == capability[0] and built <= capability):
            return True
    return any(tuple(map(int, ptx.split("."))) <= capability for ptx in facts.get("cuda_ptx", ()))


# ------------------------------------------------------------------------------------------------- Triton


def triton_reason(device_type: str) -> str | None:
    """Why Triton cannot serve tensors of that device; None when it can."""
    if device_type not in ("cpu", "cuda"):
        return "it serves cuda tensors"
    if device_type == "cpu" and not _library.triton_serves_cpu():
        return "on the CPU it needs TRITON_INTERPRET=1 set before Triton is imported"
    try:
        importlib.import_module("pyops.triton_kernels")
    except Exception as error:  # a broken installation raises whatever it likes
        return f"Triton cannot be imported: {type(error).__name__}: {error}"
    if device_type == "cpu" or not torch.cuda.is_available():
        return None  # interpreted, or traced only
    return _driver_reason()


def _driver_reason() -> str | None:
    """Triton compiles its driver in C at the first use, against Python's headers and the GPU's driver."""
    from triton.runtime import driver

    try:
        utilities = driver.active.utils
    except Exception as error:
        return f"Triton's driver, which needs a C compiler, does not start: {type(error).__name__}: {error}"
    if hasattr(utilities, "launch"):
        return None
    # Before Triton 3.7 every kernel had a launcher in C of its own: that the driver was compiled once is not
    # enough.
    chosen = os.environ.get("CC")
    if any(map(shutil.which, [chosen] if chosen else ["gcc", "clang"])):
        return None
    return f"Triton needs a C compiler, and {f'CC={chosen}' if chosen else 'gcc or clang'} was not found"
