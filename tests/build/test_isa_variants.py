"""Each instruction-set variant of the CPU library in a process of its own."""

from __future__ import annotations

import json

import pytest
import torch

from tests.suite.processes import ROOT, run_python

# ATEN_CPU_CAPABILITY -> the variant that must be loaded.
VARIANTS = {"default": "baseline", "avx2": "avx2", "avx512": "avx512"}
_HERE = torch.backends.cpu.get_cpu_capability()


def runs_here(capability: str) -> bool:
    order = ["DEFAULT", "AVX2", "AVX512"]
    own = "AVX512" if _HERE.startswith("AVX512") else _HERE
    return own in order and order.index(capability.upper()) <= order.index(own)


@pytest.mark.parametrize("capability", VARIANTS)
def test_variant_is_loaded_and_accurate(capability: str) -> None:
    if not runs_here(capability):
        pytest.skip(f"this CPU has {_HERE} only")
    library = f"libpyops_cpu_{VARIANTS[capability]}.so"
    if not (ROOT / "pyops" / "_lib" / library).exists():
        pytest.skip(f"{library} is not built for this platform")
    environment = {"ATEN_CPU_CAPABILITY": capability, "PYOPS_BACKEND": None}
    script = "import json, pyops; print(json.dumps(pyops.info()))"
    info = json.loads(run_python("-c", script, environment=environment).stdout)
    assert info["loaded"]["cpp"] == library
    run_python("-m", "tests.suite.smoke", environment=environment)
