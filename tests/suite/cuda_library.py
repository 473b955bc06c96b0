"""Reading the CUDA library that nvcc has built: its PTX, its machine code, what its kernels take."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .processes import ROOT

LIBRARY = ROOT / "pyops" / "_lib" / "libpyops_cuda.so"
SOURCES = sorted(path.stem for path in (ROOT / "csrc" / "cuda").rglob("*.cu"))


@functools.cache
def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, such as nvcc. Triton brings some that the toolkit may come without."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.path.join(home, "bin") for home in homes if home]
    triton = importlib.util.find_spec("triton")
    if triton is not None:
        folders.append(str(Path(str(triton.origin)).parent / "backends" / "nvidia" / "bin"))
    found = [shutil.which(name, path=folder) for folder in [*folders, None]]
    return next(filter(None, found), None)


def missing_reason() -> str | None:
    """Why the library cannot be read here; None when it can."""
    if not LIBRARY.exists():
        return "the CUDA library is not built: PYOPS_WITH_CUDA=1 make build"
    return None if find_tool("cuobjdump") else "cuobjdump was not found"


def cuobjdump(*arguments: str | Path, directory: Path | None = None) -> str:
    """What the tool prints.

    Raises:
        RuntimeError: it failed; the message is its own.
    """
    command = [str(find_tool("cuobjdump")), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory)
    if result.returncode != 0:
        raise RuntimeError(result.stderr)
    return result.stdout


def unwanted_code(text: str, architecture: str) -> list[str]:
    """Instructions and addresses in the disassembly ``text`` that no kernel may have.

    LDL and STL go to local memory, for what is spilled and for arrays that are indexed. LD, ST and ATOM are
    generic: they do not say which memory they reach, as those of CUDA C++ in global and shared memory do. A
    kernel that makes a generic address of shared memory needs its window's: a special register, and before
    sm_90 a constant. A global access to such an address, as by `__stwb`, is illegal on every GPU.
    """
    places = ["SR_SWIN", "SR_LWIN"]
    if architecture.startswith("sm_8"):
        places += [f"c[0x0][0x{offset}]" for offset in ("18", "1c", "20", "24")]
    words = [f" {name}{end}" for name in ("LDL", "STL", "LD", "ST", "ATOM") for end in ". "]
    return list(dict.fromkeys(word.strip(" .") for word in [*places, *words] if word in text))


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture; what is spilled lies on its stack."""

    source: str
    architecture: str
    kernel: str
    registers: int
    stack_bytes: int
    shared_bytes: int


def usages() -> list[Usage]:
    """Of all kernels of the library."""
    return parse_usages(cuobjdump("-res-usage", LIBRARY))


def parse_usages(report: str) -> list[Usage]:
    """The kernels in the output of ``cuobjdump -res-usage``."""
    kernel = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
    found = []
    for part in report.split("Fatbin elf code:")[1:]:
        architecture = re.search(r"^arch = (\w+)", part, re.MULTILINE)
        source = re.search(r"^identifier = (.*)", part, re.MULTILINE)
        for name, *numbers in kernel.findall(part):
            assert architecture
            assert source
            found.append(Usage(Path(source[1]).stem, architecture[1], name, *map(int, numbers)))
    return found


def demangle(names: list[str]) -> list[str]:
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        return names
    result = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return result.stdout.splitlines()
