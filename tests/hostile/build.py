"""The C++ library for AddressSanitizer and UBSan: ``python -m tests.hostile.build`` compiles it.

It is the variant that this machine loads, in ``build/sanitized``. The CUDA sources have theirs in
``tests/cuda_emulation/build.py``, with the same flags.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.suite import native
from tests.suite.processes import ROOT

#: Sanitizers of every library that tests compile for them; what they see ends the process.
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


def runtime_library() -> str | None:
    """What a process that loads such a library preloads; None when the compiler has no AddressSanitizer."""
    return native.library_of_compiler("libasan.so")


def environment() -> dict[str, str]:
    """Variables of a process with sanitizers. Python frees little at its end: leaks are not looked for."""
    return {
        # With libstdc++, where the sanitizer looks for what throws before Python has loaded it.
        "LD_PRELOAD": f"{runtime_library()} {native.library_of_compiler('libstdc++.so.6')}",
        # Memory that nobody has is refused, as it is by torch.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1"
        ":max_allocation_size_mb=1024",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def build_cpu(variant: str, flags: str) -> Path:
    """Compile every source of ``csrc/cpu`` as that ``variant`` of the library, unless it is there."""
    import torch

    csrc, torch_folder = ROOT / "csrc", Path(torch.__file__).parent
    folders = ("binding", "common", "cpu", "math")
    return native.compile_library(
        ROOT / "build" / "sanitized",
        f"pyops_cpu_{variant}",
        sorted((csrc / "cpu").rglob("*.cpp")),
        headers=[path for folder in folders for path in (csrc / folder).rglob("*.h")],
        flags=[
            *shlex.split(flags),
            # Unoptimised, for the compiler's time, and because of functions that are always inline.
            *("-O0", "-g1", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
            *FLAGS,
            f"-I{csrc}",
            *(f"-isystem{torch_folder}/include", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
        ],
        link_flags=[f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib", "-ltorch", "-ltorch_cpu"],
    )


def build_loaded() -> Path:
    """The variant of the CPU library that pyops has loaded here, with sanitizers.

    Raises:
        RuntimeError: none is loaded, or the compiler failed.
    """
    import pyops

    name = pyops._library.loaded.get("cpp")
    if name is None:
        raise RuntimeError(f"no CPU library: {pyops._library.load_errors['cpp']}")
    variant = Path(name).stem.removeprefix("libpyops_cpu_")
    return build_cpu(variant, pyops.info()["build"]["cpu"][variant])


if __name__ == "__main__":
    print(build_loaded())
