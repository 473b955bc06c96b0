"""What a run is on: the GPU, the versions, the commit, and where the tools of CUDA are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"

Facts = dict[str, Any]

_PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": None}
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    found |= {"gpu": p.name, "arch": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count,
              "memory_gib": round(p.total_memory / 2**30, 1)}
try:
    import triton
    found["triton"] = triton.__version__
except Exception:  # a broken installation raises whatever it likes
    found["triton"] = None
print(json.dumps(found))
"""


def probe(*, dry_run: bool) -> Facts:
    """Facts about the GPU and the software; ``gpu`` is None, with a ``reason``, where there is none."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it failed without a message"]
        return {"gpu": None, "reason": f"torch cannot be imported: {last[0]}"}
    facts: Facts = json.loads(done.stdout.strip().splitlines()[-1])
    if dry_run:
        facts |= {"gpu": "dry run", "arch": "9.0"}
    elif not facts["gpu"]:
        built = "without CUDA" if facts["cuda"] is None else f"with CUDA {facts['cuda']}"
        facts["reason"] = f"torch {facts['torch']}, built {built}, finds none"
        return facts
    facts["date"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    facts["python"] = sys.version.split()[0]
    facts["cores"] = os.cpu_count() or 1
    facts["driver"] = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    facts["nvcc"] = _output([tool("nvcc") or "nvcc", "--version"], pattern=r"release [\d.]+")
    facts["commit"] = _commit()
    return facts


def tool(name: str) -> str | None:
    """A CUDA tool on the PATH or in the toolkit's folder, which often is not on it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which(name) or shutil.which(name, path=f"{home}/bin:{home}/compute-sanitizer")


def _commit() -> str:
    git = ["git", "-C", str(ROOT)]
    revision = _output([*git, "rev-parse", "--short=10", "HEAD"])
    if revision is None:
        return os.environ.get("PYOPS_COMMIT", "unknown")
    # Results of an earlier run are no change to what is measured.
    others = [".", f":!{RESULTS.relative_to(ROOT)}"]
    dirty = _output([*git, "status", "--porcelain", "--untracked-files=no", "--", *others])
    return revision + ("-dirty" if dirty else "")


def _output(command: list[str], pattern: str | None = None) -> str | None:
    """First line (or first match of ``pattern``) of a command's output; None when it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    if pattern is not None:
        found = re.search(pattern, done.stdout)
        return found.group() if found else None
    return next(iter(done.stdout.strip().splitlines()), None)
