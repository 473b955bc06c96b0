"""What the numbers were measured on: the stamp that goes into every report."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import pyops
from pyops import _library, backends

from . import cpu

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "benchmarks/results"
THP_VARIABLE = "THP_MEM_ALLOC_ENABLE"
_TRUE = ("1", "y", "yes", "on", "true")


def stamp(device: torch.device) -> dict[str, Any]:
    """Everything needed to judge or repeat a measurement on ``device``; keys are stable for the JSON."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu": cpu.name(),
        "cpu_features": cpu.features(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "thp_allocator": thp_requested(),
        "thp_kernel": _thp_kernel_mode(),
        "pyops": None,
        "pyops_libraries": {},
        "pyops_backends": [],
        "commit": commit(),
        "device": str(device),
    }
    facts.update(_pyops_facts(device))
    if device.type == "cuda":
        facts.update(_gpu_facts(device))
    return facts


def _pyops_facts(device: torch.device) -> dict[str, Any]:
    return {
        "pyops": getattr(pyops, "__version__", None),
        "pyops_libraries": dict(_library.loaded),
        "pyops_backends": backends.available_backends(device),
    }


def _gpu_facts(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    driver = _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    try:
        import triton

        triton_version = triton.__version__
    except Exception:  # a broken installation raises whatever it likes
        triton_version = None
    return {
        "gpu": properties.name,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "gpu_multiprocessors": properties.multi_processor_count,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "gpu_l2_mib": round(l2_bytes(device) / 2**20, 1),
        "driver": driver,
        "cuda": torch.version.cuda,
        "triton": triton_version,
    }


def l2_bytes(device: torch.device) -> int:
    """Size of the GPU's last-level cache; 64 MiB, a generous guess, where torch does not tell."""
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 * 2**20))


def commit() -> str:
    """Short commit id of the checkout, ``-dirty`` when files differ from it.

    A copy of the tree without git can be told by the environment variable ``PYOPS_COMMIT``.
    """
    revision = None
    if (ROOT / ".git").exists():  # an installed package may lie inside somebody else's repository
        revision = _first_line(["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"])
    if revision is None:
        return os.environ.get("PYOPS_COMMIT", "unknown")
    # Results of an earlier run are no change to what is measured.
    changed = _first_line(
        ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS}"]
    )
    return revision + ("-dirty" if changed else "")


def with_huge_pages(module: str) -> None:
    """Start the program ``module`` again with torch's switch for huge pages on, unless it is set.

    torch reads it once, at its first allocation; this process has imported torch already.
    """
    if THP_VARIABLE not in os.environ:
        os.environ[THP_VARIABLE] = "1"
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def thp_requested() -> bool:
    """Whether torch's CPU allocator was asked for transparent huge pages when the process started."""
    return os.environ.get(THP_VARIABLE, "").lower() in _TRUE


def _thp_kernel_mode() -> str | None:
    try:
        return Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip()
    except OSError:
        return None


def _cores() -> int | None:
    """Cores this process may use, which in a container is often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if lines else None
