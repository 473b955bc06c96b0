"""The backends under test."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

import pyops

from .processes import one_at_a_time


@dataclass(frozen=True)
class Backend:
    """A backend on a device.

    ``thorough`` backends are fast enough for every case. The emulator and Triton's interpreter are about
    1000 times slower, and Triton on a GPU compiles each combination of options: they get the ``quick`` cases,
    which cover every pair of options and every shape of code path.
    """

    name: str
    device: str
    thorough: bool

    def __str__(self) -> str:
        return f"{self.name}-{self.device}" if self.name in ("triton", "reference") else self.name

    @property
    def refuses_bad_targets(self) -> bool:
        """Whether a class index out of range raises; elsewhere it gives NaN: asking would synchronise."""
        return self.name == "cpp"


CPP = Backend("cpp", "cpu", thorough=True)
_HAS_GPU = torch.cuda.is_available()
BACKENDS = [
    CPP,
    Backend("reference", "cpu", thorough=True),
    Backend("emulated", "cpu", thorough=False),
    *(
        [Backend("cuda", "cuda", thorough=True), Backend("triton", "cuda", thorough=False)]
        if _HAS_GPU
        else [Backend("triton", "cpu", thorough=False)]
    ),
]
TRITON = BACKENDS[-1]
WITH_KERNELS = [b for b in BACKENDS if b.name != "reference"]
THOROUGH = [b for b in BACKENDS if b.thorough]
SLOW = [b for b in BACKENDS if not b.thorough]
CUDA_SOURCES = [b for b in BACKENDS if b.name in ("emulated", "cuda")]  # the same code, on either device


@functools.cache
def _load(emulation: ModuleType) -> None:
    """Load the emulator; of workers that start together, one compiles it and the others wait."""
    with one_at_a_time(emulation.CACHE_DIR / "lock"):
        emulation.load()


def activate(backend: Backend) -> None:
    """Load what ``backend`` needs, or skip the test with the reason why it cannot run here."""
    if backend.name == "emulated":
        emulation = importlib.import_module("tests.cuda_emulation.build")
        if reason := emulation.missing_reason():
            pytest.skip(f"emulated: {reason}")
        _load(emulation)
        if not has_kernel(backend, "gemm_"):  # on CUDA it is the vendor's, through torch
            torch.library.impl("pyops_emulated::gemm_", "CPU")(pyops.ops.gemm.library_gemm_)
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
