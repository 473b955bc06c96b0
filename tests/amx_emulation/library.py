"""The kernels for tiles in a library of their own, with what carries out AMX's instructions."""

from __future__ import annotations

import ctypes
import functools
import shlex
from pathlib import Path

import torch

import pyops
from tests.suite import native
from tests.suite.processes import ROOT

_FOLDER = Path(__file__).resolve().parent
_KERNELS = ("pack", "tiles", "vectors")

#: The instructions, in the order in which they are counted.
INSTRUCTIONS = ("ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbf16ps")


def missing_reason() -> str | None:
    """Why the kernels cannot be compiled or run here; None when they can."""
    if "avx512" not in pyops.info()["build"]["cpu"] or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "kernels for tiles are in the AVX-512 variant"
    return native.missing_reason()


@functools.cache
def load() -> ctypes.CDLL:
    """The library, compiled as the AVX-512 variant is."""
    csrc = ROOT / "csrc"
    sources = [csrc / "cpu" / "gemm" / "bf16" / f"{name}.cpp" for name in _KERNELS]
    flags = [*shlex.split(pyops.info()["build"]["cpu"]["avx512"]), "-O3", "-Wno-psabi", "-Wno-uninitialized"]
    path = native.compile_library(
        ROOT / "build" / "amx_emulation",
        "amx_kernels",
        [*sources, _FOLDER / "gemm.cpp", _FOLDER / "emulator.cpp"],
        headers=[*csrc.rglob("*.h"), _FOLDER / "emulator.h"],
        flags=[*flags, "-ffp-contract=off", f"-I{csrc}", f"-I{_FOLDER}"],
    )
    library = ctypes.CDLL(str(path))
    strides = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    library.amx_gemm.argtypes = [
        ctypes.c_bool, *[ctypes.c_int64] * 3, *strides, *strides, ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    library.amx_gemm.restype = ctypes.c_char_p
    return library


def gemm(a: torch.Tensor, b: torch.Tensor, *, twin: bool) -> tuple[torch.Tensor, dict[str, int]]:
    """``a @ b``, and how many instructions were carried out for the CPU.

    Raises:
        AssertionError: the instructions were not used as they must be.
    """
    out = torch.full((a.size(0), b.size(1)), torch.nan)
    counts = (ctypes.c_int64 * len(INSTRUCTIONS))()
    operands = [value for t in (a, b.t()) for value in (t.data_ptr(), *t.stride())]
    error = load().amx_gemm(twin, *out.shape, a.size(1), *operands, out.data_ptr(), counts)
    assert not error, error
    return out, dict(zip(INSTRUCTIONS, counts, strict=True))
