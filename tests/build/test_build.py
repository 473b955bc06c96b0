"""What the compiled libraries contain: stable symbols only, the right instructions, nothing exported."""

from __future__ import annotations

import json
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from setuptools import Distribution

import pyops
from tests.suite.processes import ROOT

LIBRARIES = sorted((ROOT / "pyops" / "_lib").glob("*.so"))
CPU_LIBRARIES = [p for p in LIBRARIES if "_cpu_" in p.name]

needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="binutils' nm is not installed")
needs_objdump = pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")


def symbols(library: Path, kind: str) -> list[str]:
    text = subprocess.run(["nm", "-D", kind, library], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in text.splitlines()]


def test_something_is_built() -> None:
    assert CPU_LIBRARIES, "no CPU library: run pip install -e ."


@needs_nm
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda p: p.name)
def test_library_uses_the_stable_abi_only(library: Path) -> None:
    """Mangled names of torch (at::, c10::, torch::) change with every release; the C shims do not."""
    undefined = symbols(library, "--undefined-only")
    mangled = [s for s in undefined if s.startswith("_Z")]
    # What mentions at, c10, caffe2 or torch as a namespace: a length-prefixed name in Itanium mangling.
    unstable = [s for s in mangled if re.search(r"(?<!\d)(2at|3c10|6caffe2|5torch)(?=[A-Z\d])", s)]
    assert not unstable
    foreign = [
        s
        for s in mangled
        if not re.match(r"_Z(N?K?S[a-z]|NK?St|TI|TV|TS|n|d|S|NSt|NKSt|NSo|NSi|NK?9__gnu|N10__cxxabi)", s)
    ]
    assert not foreign, "C++ symbols of something other than the standard library"
    from_torch = [s for s in undefined if "torch" in s]
    assert all(re.match(r"(aoti_)?torch_\w+$", s) for s in from_torch)
    assert from_torch, "the library does not use torch at all"


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda p: p.name)
def test_library_says_nothing_of_where_it_was_built(library: Path) -> None:
    """Error messages began with the path of the source that raises them, which torch's macros put there.

    That of a source that registers ops stays in the library: torch keeps it for its own errors.
    """
    headers = re.findall(rb"csrc/(?:binding|common|cpu|cuda|math)/[\w/]+\.(?:cuh|h)\b", library.read_bytes())
    assert not sorted(set(headers))[:5]
    macros = re.compile(r"\b(STD_)?TORCH_CHECK\w*\(|\b(STABLE_)?TORCH_ERROR_CODE_CHECK\(")
    sources = (path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    assert not [path for path in sources if macros.search(path.read_text(encoding="utf-8"))]


@needs_nm
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda p: p.name)
def test_library_exports_nothing_of_its_own(library: Path) -> None:
    """Two variants in one process, or another extension, must not bind to each other's functions."""
    defined = symbols(library, "--defined-only")
    # Templates of the standard library keep default visibility, whoever instantiates them.
    mangled = [s for s in defined if s.startswith("_Z")]
    assert not [s for s in mangled if "pyops" in s or "torch" in s]
    linkers = {"_edata", "_end", "__bss_start", "_init", "_fini"}
    assert set(defined) - set(mangled) <= linkers


def registers(library: Path) -> set[str]:
    code = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    ).stdout
    return set(re.findall(r"%([xyz]mm)\d", code))


@needs_objdump
@pytest.mark.parametrize("library", CPU_LIBRARIES, ids=lambda p: p.name)
def test_variant_uses_its_instruction_set_and_none_above(library: Path) -> None:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("not x86: there is one variant")
    wanted = {
        "baseline": {"xmm"},
        "avx2": {"xmm", "ymm"},
        "avx512": {"xmm", "ymm", "zmm"},
    }[library.stem.removeprefix("libpyops_cpu_")]
    assert registers(library) == wanted


@needs_nm
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda p: p.name)
def test_library_does_not_bind_to_a_particular_openmp(library: Path) -> None:
    """Threads are torch's own pool; a second OpenMP runtime would oversubscribe the cores."""
    assert not [s for s in symbols(library, "--undefined-only") if s.startswith(("GOMP", "omp_", "__kmpc"))]


@pytest.fixture(scope="module")
def setup_functions() -> dict[str, Any]:
    """The functions of setup.py, run to say its version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["setup.py", "-q", "--version"])
        return runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize(
    ("setting", "variants"),
    [
        ("all", ["baseline", "avx2", "avx512"]),
        ("avx512, baseline", ["baseline", "avx512"]),
        ("native", [pyops._library.cpu_variant()]),
        (None, [pyops._library.cpu_variant()]),
    ],
)
def test_variants_to_build(
    setting: str | None, variants: list[str], setup_functions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting is None:
        monkeypatch.delenv("PYOPS_CPU_VARIANTS", raising=False)
    else:
        monkeypatch.setenv("PYOPS_CPU_VARIANTS", setting)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        variants = ["baseline"]
    assert setup_functions["cpu_variants"]("g++") == variants


def test_unknown_variant_to_build_is_refused(
    setup_functions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYOPS_CPU_VARIANTS", "avx2,sse9")
    with pytest.raises(SystemExit, match=r"native, all or some of baseline.*'sse9'"):
        setup_functions["cpu_variants"]("g++")


def test_module_of_a_build_in_place_has_the_facts_beside_the_libraries() -> None:
    info = pytest.importorskip("pyops._build_info", reason="only builds in place have it")
    facts = json.loads(info.facts_json)
    assert facts == json.loads((ROOT / "pyops/_lib/build_facts.json").read_text())
    assert facts["compiler"].split(" ", 1)[1] == info.compiler


# ------------------------------------------------------------------------------------------- architectures

HOPPER = """// A toy.
// Architectures with a PTX of their own: 9.0a
__global__ void toy(float* out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;");
#endif
  *out = 1.f;
}
"""


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("8.0 9.0", "compute_80,code=sm_80 compute_90a,code=sm_90a"),
        ("8.0;9.0+PTX", "compute_80,code=sm_80 compute_90a,code=sm_90a compute_80,code=compute_80"),
        ("9.0a", "compute_90a,code=sm_90a"),
        ("8.0 8.6", "compute_80,code=sm_80 compute_80,code=sm_86"),
        ("9.0 10.0", "compute_90a,code=sm_90a compute_100,code=sm_100"),
    ],
)
def test_a_source_gets_the_ptx_of_its_own_that_it_asks_for(
    listed: str,
    expected: str,
    setup_functions: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    archs = setup_functions["cuda_archs"]("nvcc")
    (tmp_path / "toy.cu").write_text(HOPPER)
    flags = setup_functions["gencode"](archs, setup_functions["own_ptx"](tmp_path / "toy.cu"))
    assert flags.split() == [f"-gencode=arch={part}" for part in expected.split()]


@pytest.mark.parametrize(
    ("archs", "ptx"),
    [
        (["8.0", "9.0"], []),
        (["9.0+PTX"], ["9.0"]),
        (["8.0", "9.0", "12.0+PTX"], ["12.0"]),
        (["9.0a+PTX"], []),
    ],
)
def test_the_build_tells_which_ptx_later_gpus_find(
    archs: list[str], ptx: list[str], setup_functions: dict[str, Any]
) -> None:
    assert setup_functions["embedded_ptx"](archs) == ptx


def test_every_source_is_built_with_flags_of_its_own(
    setup_functions: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "hopper.cu").write_text(HOPPER)
    (tmp_path / "cuda" / "plain.cu").write_text("// A toy.")
    build_class = setup_functions["BuildKernels"]
    monkeypatch.setitem(build_class.ninja_lines.__globals__, "CSRC", tmp_path)
    build = build_class(Distribution())
    build.cxx, build.cpu_flags, build.targets, build.work, build.out = "g++", {}, [], tmp_path, tmp_path
    lines = "\n".join(build.ninja_lines(tmp_path, "nvcc", ["8.0", "9.0"]))
    flags = dict(re.findall(r"^build \S+/(\w+)\.cu\.o: nvcc .*\n flags = (.*)$", lines, re.MULTILINE))
    assert flags == {
        "hopper": "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a",
        "plain": "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_80,code=sm_90",
    }


def test_architecture_that_there_is_not_is_refused(setup_functions: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "toy.cu").write_text("// Architectures with a PTX of their own: hopper")
    with pytest.raises(SystemExit, match=r"toy\.cu asks for a PTX of its own for hopper"):
        setup_functions["own_ptx"](tmp_path / "toy.cu")


def test_a_source_with_a_ptx_of_its_own_has_that_architectures_instructions(
    setup_functions: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYOPS_WITH_CUDA", "auto")
    nvcc = setup_functions["find_nvcc"](torch_has_cuda=True)
    if nvcc is None:
        pytest.skip("nvcc was not found")
    source = tmp_path / "toy.cu"
    source.write_text(HOPPER)
    flags = setup_functions["gencode"](["8.0", "9.0"], setup_functions["own_ptx"](source))
    command = [nvcc, *flags.split(), "--keep", "-c", source, "-o", tmp_path / "toy.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    texts = {path.name: path.read_text() for path in tmp_path.glob("toy*.ptx")}
    assert len(texts) == 2
    assert [name for name, text in texts.items() if "wgmma.fence" in text] == ["toy.compute_90a.ptx"]
