"""Mistakes in the C++ sources: a library for each, and a process that loads it and runs the smoke check."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.suite.mutants import Mutant
from tests.suite.ops import MODULES
from tests.suite.processes import ROOT, run_python

COMPILER = shutil.which(os.environ.get("CXX", "g++"))

MUTANTS: dict[str, Mutant] = {
    name: mutant for module in MODULES for name, mutant in getattr(module, "MUTANTS", {}).items()
}
# The module of the suite that should notice.
OP = {name: module.__name__ for module in MODULES for name in getattr(module, "MUTANTS", {})}

_CPU = ROOT / "csrc" / "cpu"
SOURCES = sorted(str(path.relative_to(_CPU).with_suffix("")) for path in _CPU.rglob("*.cpp"))
TORCH = Path(torch.__file__).parent

# Of the baseline variant, and unoptimised: the compiler's time is what counts here.
COMPILE = [str(COMPILER), "-std=c++17", "-O0", "-w", "-fPIC", "-fvisibility=hidden"]
COMPILE += [f"-isystem{TORCH}/include", "-DTORCH_TARGET_VERSION=0x020b000000000000"]


def precompile_headers(folder: Path) -> list[str]:
    """What makes torch's headers, a third of an average source's time, be read once."""
    header = folder / "headers.h"
    text = (ROOT / "csrc" / "binding" / "tensor.h").read_text()
    header.write_text("\n".join(line for line in text.splitlines() if line.startswith("#include <")))
    subprocess.run([*COMPILE, "-x", "c++-header", str(header), "-o", f"{header}.gch"], check=True)
    return ["-include", str(header)]


def compile_object(tree: Path, source: str, headers: list[str]) -> Path:
    target = tree / f"{source.replace('/', '_')}.o"
    command = [*COMPILE, f"-I{tree}", *headers, "-c", str(tree / "cpu" / f"{source}.cpp"), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def link(objects: list[Path], library: Path) -> Path:
    command = [str(COMPILER), "-shared", *map(str, objects), "-o", str(library), f"-L{TORCH}/lib"]
    subprocess.run([*command, "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"], check=True)
    return library


def build_mutant(folder: Path, originals: dict[str, Path], mutant: Mutant, headers: list[str]) -> Path:
    tree = folder / "csrc"
    shutil.copytree(ROOT / "csrc", tree, ignore=shutil.ignore_patterns("cuda"))
    changed = tree / mutant.file
    changed.write_text(changed.read_text().replace(mutant.old, mutant.new))
    rebuilt = {source: compile_object(tree, source, headers) for source in mutant.compile}
    # The rebuilt ones first: of an inline function that several objects hold, the linker takes the first.
    return link(
        list({**rebuilt, **{s: o for s, o in originals.items() if s not in rebuilt}}.values()),
        folder / "libmutant.so",
    )


# glibc fills new memory with 0x7f: what a mutant forgets to write is else what the run before left there.
FILLED = {"MALLOC_PERTURB_": str(0xFF ^ 0x7F)}

# Forks one child per library, given with the module whose checks come first, after slow imports (the last is
# what an op's first call would import); it loads the library in place of the real one.
_JUDGE = """
import os, sys
import pytest, torch, torch.testing
import torch.fx.experimental.symbolic_shapes
real = torch.ops.load_library
for library, module in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.stdout.flush()
    if os.fork() == 0:
        torch.ops.load_library = lambda path, library=library: real(library)
        from tests.suite import smoke
        from tests.suite.backends import CPP
        failed = smoke.failures(CPP, at_most=1, first=module)
        print(library, len(failed), *[name.replace(" ", "") for name in failed], flush=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0, library
"""


def survivors(folder: Path, names: list[str]) -> list[str]:
    """Those of the mutants ``names`` that the smoke check does not notice; ``folder`` is for the libraries.

    Raises:
        AssertionError: the original fails the smoke check.
    """
    original = folder / "original"
    shutil.copytree(ROOT / "csrc", original, ignore=shutil.ignore_patterns("cuda"))
    headers = precompile_headers(folder)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        compiled = pool.map(lambda source: compile_object(original, source, headers), SOURCES)
        objects = dict(zip(SOURCES, compiled, strict=True))
        built = pool.map(lambda n: build_mutant(folder / n, objects, MUTANTS[n], headers), names)
        libraries = [link(list(objects.values()), folder / "liboriginal.so"), *built]
    environment = {"PYOPS_BACKEND": None, "TRITON_INTERPRET": None, **FILLED}
    first = ["", *(OP[name] for name in names)]
    arguments = [word for pair in zip(map(str, libraries), first, strict=True) for word in pair]
    output = run_python("-c", _JUDGE, *arguments, environment=environment).stdout
    verdicts = {Path(line.split()[0]): line.split()[1:] for line in output.splitlines()}
    assert verdicts[libraries[0]] == ["0"], f"the original fails: {verdicts[libraries[0]]}"
    return [path.parent.name for path in libraries[1:] if verdicts[path][0] == "0"]
