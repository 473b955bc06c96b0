"""The backends under test."""

from __future__ import annotations

import functools
import importlib
import os
import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

import pyops

from .processes import ROOT, one_at_a_time


@dataclass(frozen=True)
class Backend:
    """A backend on a device.

    ``thorough`` backends are fast enough for every case. The emulator, the PTX machine (``ptx``: the kernels
    as nvcc compiled them) and Triton's interpreter are about 1000 times slower, and Triton on a GPU compiles
    each combination of options: they get the ``quick`` cases, which cover every pair of options and every
    shape of code path; the emulator and the PTX machine share them, but nightly. Where ``thinned``, because
    each kernel is compiled on the CPU as well, a quick case runs in one of its dtypes and layouts, the next
    one in another, and half of them nightly.
    """

    name: str
    device: str
    thorough: bool
    thinned: bool = False

    def __str__(self) -> str:
        if self == COMPILED_TRITON:
            return "triton-ptx"
        return f"{self.name}-{self.device}" if self.name in ("triton", "reference") else self.name

    @property
    def refuses_bad_targets(self) -> bool:
        """Whether a class index out of range raises; elsewhere it gives NaN: asking would synchronise."""
        return self.name == "cpp"


CPP = Backend("cpp", "cpu", thorough=True)
COMPILED_TRITON = Backend("triton", "cpu", thorough=False, thinned=True)
#: Triton is compiled and run by ``tests/ptx_machine`` instead of interpreted; a process can have one of them.
TRITON_IS_COMPILED = os.environ.get("PYOPS_TEST_TRITON") == "compiled"
_HAS_GPU = torch.cuda.is_available()
BACKENDS = [
    CPP,
    Backend("reference", "cpu", thorough=True),
    Backend("emulated", "cpu", thorough=False),
    Backend("ptx", "cpu", thorough=False),
    *(
        [Backend("cuda", "cuda", thorough=True), Backend("triton", "cuda", thorough=False)]
        if _HAS_GPU
        else [COMPILED_TRITON if TRITON_IS_COMPILED else Backend("triton", "cpu", thorough=False)]
    ),
]
TRITON = BACKENDS[-1]
WITH_KERNELS = [b for b in BACKENDS if b.name != "reference"]
THOROUGH = [b for b in BACKENDS if b.thorough]
SLOW = [b for b in BACKENDS if not b.thorough]
# The same code, on either device.
CUDA_SOURCES = [b for b in BACKENDS if b.name in ("emulated", "ptx", "cuda")]


#: What loads the backends that are built by the tests.
_LOADERS = {"emulated": "tests.cuda_emulation.build", "ptx": "tests.ptx_machine.nvcc"}
TWINS = [b for b in BACKENDS if b.name in _LOADERS]


@functools.cache
def _load(loader: ModuleType) -> None:
    """Load a backend; of workers that start together, one compiles it and the others wait."""
    with one_at_a_time(ROOT / "build" / "lock"):
        loader.load()


def missing_reason(backend: Backend) -> str | None:
    """Why ``backend`` cannot be loaded here; None when it can."""
    loader = _LOADERS.get(backend.name)
    return importlib.import_module(loader).missing_reason() if loader else None


def is_of_its_twin(nodeid: str, backend: Backend, tests: Collection[str]) -> bool:
    """Whether the emulator leaves a test of ``tests`` to the PTX machine, or the other way round.

    They run the same sources: of what is asked of both each takes half, by chance.
    """
    if backend not in TWINS:
        return False
    emulated, ptx = (re.sub(rf"\b{backend.name}\b", twin.name, nodeid) for twin in TWINS)
    both = emulated != ptx and emulated in tests and ptx in tests
    return both and zlib.crc32(emulated.encode()) % 2 == TWINS.index(backend)


def compile_triton() -> None:
    """Compile Triton kernels as for a GPU from now on, and run them in the PTX machine on CPU tensors."""
    importlib.import_module("tests.ptx_machine.triton_driver").activate()


def need_ptx_machine() -> None:
    """Skip the test where the PTX machine cannot be built."""
    if reason := importlib.import_module("tests.ptx_machine.machine").missing_reason():
        pytest.skip(f"PTX machine: {reason}")


def activate(backend: Backend) -> None:
    """Load what ``backend`` needs, or skip the test with the reason why it cannot run here."""
    if reason := missing_reason(backend):
        pytest.skip(f"{backend}: {reason}")
    if backend.name in _LOADERS:
        _load(importlib.import_module(_LOADERS[backend.name]))
        if not has_kernel(backend, "gemm_"):  # on CUDA it is the vendor's, through torch
            gemm_ = f"{pyops.backends._namespaces[backend.name]}::gemm_"
            torch.library.impl(gemm_, "CPU")(pyops.ops.gemm.library_gemm_)
    if backend == COMPILED_TRITON:
        need_ptx_machine()
    if reason := pyops.backends.missing_reason(backend.name, backend.device):
        pytest.skip(f"{backend}: {reason}")


def has_kernel(backend: Backend, op: str) -> bool:
    """Whether the raw op ``op`` is implemented by ``backend``."""
    namespace = pyops.backends._namespaces[backend.name]
    key = "CUDA" if backend.device == "cuda" else "CPU"
    if op not in pyops._library.op_names(namespace):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{op}", key)


def raw(backend: Backend, op: str):
    """The raw op ``op`` in the namespace of ``backend``."""
    return getattr(getattr(torch.ops, pyops.backends._namespaces[backend.name]), op).default
