"""Compile the CUDA sources for the emulator and load them as the backend ``emulated``.

``python -m tests.cuda_emulation.build`` (add ``--sanitize`` for AddressSanitizer) compiles and prints the
path. The library is kept in ``build/cuda_emulation``, named by a hash of everything it is made of.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
from pathlib import Path

from tests.hostile.build import FLAGS as SANITIZE
from tests.suite import native

EMULATION_DIR = Path(__file__).resolve().parent
ROOT = EMULATION_DIR.parents[1]
CSRC = ROOT / "csrc"
CACHE_DIR = ROOT / "build" / "cuda_emulation"

NAMESPACE = "pyops_emulated"
BACKEND = "emulated"

_OPTIMISATION = ("-O1", "-g1")


def missing_reason() -> str | None:
    """Why the emulator cannot be built here; None when it can."""
    return native.missing_reason()


def _torch_flags() -> tuple[list[str], list[str]]:
    from torch.utils import cpp_extension

    include = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    libraries = cpp_extension.library_paths()
    link = [f"-L{path}" for path in libraries] + [f"-Wl,-rpath,{path}" for path in libraries]
    return ["-DTORCH_TARGET_VERSION=0x020b000000000000", *include], [*link, "-ltorch_cpu"]


def compile_library(name: str, sources: list[Path], *, sanitize: bool = False, torch: bool = True) -> Path:
    """Compile ``sources`` with the emulator into a shared library in the cache, unless it is there.

    Args:
        name: what the file name starts with.
        sources: CUDA sources.
        sanitize: build for AddressSanitizer, whose runtime the process must then preload.
        torch: compile and link against torch.

    Raises:
        RuntimeError: the compiler failed; the message is its output.
    """
    compile_flags, link_flags = _torch_flags() if torch else ([], [])
    folders = ("binding", "common", "cuda", "math")
    headers = [path for folder in folders for path in (CSRC / folder).rglob("*.*h")]
    return native.compile_library(
        CACHE_DIR,
        f"{name}_asan" if sanitize else name,
        [*sources, EMULATION_DIR / "emulator.cpp"],
        headers=[*headers, *EMULATION_DIR.glob("*.h")],
        flags=[
            *_OPTIMISATION,
            *(SANITIZE if sanitize else ()),  # a GPU refuses a misaligned 16-byte access: hence undefined
            "-Wno-unknown-pragmas",
            f"-I{EMULATION_DIR}",
            f"-I{CSRC}",
            *compile_flags,
        ],
        link_flags=link_flags,
    )


def build_ops(*, sanitize: bool = False) -> Path:
    """Compile every source of ``csrc/cuda``."""
    return compile_library("pyops_emulated", sorted((CSRC / "cuda").rglob("*.cu")), sanitize=sanitize)


@functools.cache
def load() -> None:
    """Build what is not built, load it and register the backend ``emulated``. Later calls do nothing.

    ``PYOPS_EMULATION_LIBRARY`` names a library to load instead of building (the AddressSanitizer test).

    Raises:
        RuntimeError: no compiler, or it failed.
    """
    import torch

    import pyops

    reason = missing_reason()
    if reason is not None:
        raise RuntimeError(f"the CUDA emulator cannot be built: {reason}")
    library = os.environ.get("PYOPS_EMULATION_LIBRARY") or str(build_ops())
    pyops.backends.register_backend(BACKEND, NAMESPACE)
    torch.ops.load_library(library)


@functools.cache
def load_selftest() -> ctypes.CDLL:
    """The emulator with the kernels of ``selftest.cu``, called through ctypes."""
    return ctypes.CDLL(str(compile_library("selftest", [EMULATION_DIR / "selftest.cu"], torch=False)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sanitize", action="store_true", help="build for AddressSanitizer")
    print(build_ops(sanitize=parser.parse_args().sanitize))


if __name__ == "__main__":
    main()
