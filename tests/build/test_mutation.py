"""The suite notices a broken kernel: copies of the CPU and Triton sources with one mistake each must fail it.

Each mistake is one that a kernel library has really made, or that would be easy to make. A replacement that
no longer applies fails the test, so that mutants follow the sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.suite.mutants import Mutant, TritonMutant
from tests.suite.ops import MODULES
from tests.suite.processes import ROOT, run_python

_COMPILER = shutil.which(os.environ.get("CXX", "g++"))
pytestmark = pytest.mark.skipif(_COMPILER is None, reason="no C++ compiler")


MUTANTS: dict[str, Mutant] = {
    name: mutant for module in MODULES for name, mutant in getattr(module, "MUTANTS", {}).items()
}
# The module of the suite that should notice.
OP = {name: module.__name__ for module in MODULES for name in getattr(module, "MUTANTS", {})}

TRITON_MUTANTS: dict[str, TritonMutant] = {
    name: mutant for module in MODULES for name, mutant in getattr(module, "TRITON_MUTANTS", {}).items()
}

_CPU = ROOT / "csrc" / "cpu"
SOURCES = sorted(str(path.relative_to(_CPU).with_suffix("")) for path in _CPU.rglob("*.cpp"))
TORCH = Path(torch.__file__).parent

# Of the baseline variant, and unoptimised: the compiler's time is what counts here.
COMPILE = [str(_COMPILER), "-std=c++17", "-O0", "-w", "-fPIC", "-fvisibility=hidden"]
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
    command = [str(_COMPILER), "-shared", *map(str, objects), "-o", str(library), f"-L{TORCH}/lib"]
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


@pytest.mark.parametrize("name", [*MUTANTS, *TRITON_MUTANTS])
def test_mutation_still_applies(name: str) -> None:
    mutant = {**MUTANTS, **TRITON_MUTANTS}[name]
    assert mutant.path.read_text().count(mutant.old) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_every_mutant_fails_the_suite_and_the_original_passes(tmp_path: Path) -> None:
    original = tmp_path / "original"
    shutil.copytree(ROOT / "csrc", original, ignore=shutil.ignore_patterns("cuda"))
    headers = precompile_headers(tmp_path)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        compiled = pool.map(lambda source: compile_object(original, source, headers), SOURCES)
        objects = dict(zip(SOURCES, compiled, strict=True))
        built = pool.map(lambda n: build_mutant(tmp_path / n, objects, MUTANTS[n], headers), MUTANTS)
        libraries = [link(list(objects.values()), tmp_path / "liboriginal.so"), *built]
    environment = {"PYOPS_BACKEND": None, "TRITON_INTERPRET": None, **FILLED}
    arguments = [word for pair in zip(map(str, libraries), ["", *OP.values()], strict=True) for word in pair]
    output = run_python("-c", _JUDGE, *arguments, environment=environment).stdout
    verdicts = {Path(line.split()[0]): line.split()[1:] for line in output.splitlines()}
    assert verdicts[libraries[0]] == ["0"], f"the original fails: {verdicts[libraries[0]]}"
    survivors = [path.parent.name for path in libraries[1:] if verdicts[path][0] == "0"]
    assert not survivors


# Forks one child per mutant, given as a folder and a case; it runs the case on the folder's kernels.
_TRITON_JUDGE = """
import os, sys
import torch
import torch.fx.experimental.symbolic_shapes
import pyops
from tests.suite import checks
from tests.suite.backends import BACKENDS, activate
from tests.suite.ops import MODULES
torch.backends.cudnn.allow_tf32 = False  # as in conftest.py
backend = next(b for b in BACKENDS if b.name == "triton")
cases = {c.id: c for m in MODULES for c in getattr(m, "TINY", ())}
for folder, case in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.stdout.flush()
    if os.fork() == 0:
        pyops.__path__.insert(0, folder)
        activate(backend)
        verdict = "survives"
        with pyops.use_backend("triton"):
            try:
                checks.check_accuracy(cases[case], backend, torch.float32)
            except AssertionError:
                verdict = "fails"
        print(folder, verdict, flush=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0, folder
"""


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="interpreted, and forks")
def test_every_triton_mutant_fails_its_case(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    arguments = []
    for name, mutant in {"original": None, **TRITON_MUTANTS}.items():
        copy = tmp_path / name / "triton_kernels"
        shutil.copytree(ROOT / "triton_kernels", copy)
        if mutant is not None:
            (copy / mutant.file).write_text(mutant.path.read_text().replace(mutant.old, mutant.new))
        arguments += [str(tmp_path / name), mutant.case if mutant else "conv2d_tiny_whole_images"]
    environment = {"PYOPS_BACKEND": None, "TRITON_INTERPRET": "1", **FILLED}
    output = run_python("-W", "ignore", "-c", _TRITON_JUDGE, *arguments, environment=environment).stdout
    verdicts = {Path(line.split()[0]).name: line.split()[1] for line in output.splitlines()}
    assert verdicts.pop("original") == "survives", "the original fails"
    assert [name for name in TRITON_MUTANTS if verdicts[name] == "survives"] == []
