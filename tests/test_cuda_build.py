"""nvcc compiles the CUDA sources for every architecture tested here, and no kernel spills registers.

The registers and shared memory of the kernels are printed as a table when the tests of this file are done.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90")


def find_tool(name: str) -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    paths = [os.path.join(home, "bin") for home in homes if home]
    return next(filter(None, (shutil.which(name, path=path) for path in [*paths, None])), None)


NVCC = find_tool("nvcc")


def find_disassembler() -> str | None:
    """cuobjdump of the toolkit, which may come without, or of Triton."""
    triton = importlib.util.find_spec("triton")
    folder = Path(str(triton.origin)).parent / "backends" / "nvidia" / "bin" if triton else None
    return find_tool("cuobjdump") or (shutil.which("cuobjdump", path=folder) if folder else None)


pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc was not found (set CUDA_HOME or put it on PATH)")


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel."""

    kernel: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


def compile_source(source: Path, architecture: str, output: Path, *options: str) -> str:
    """Compile for one architecture; returns what the compiler reports."""
    command = [str(NVCC), *options, f"-arch={architecture}", "-std=c++17", "-O3"]
    command += ["--expt-relaxed-constexpr", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command += ["-Werror", "all-warnings"]
    command += [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    result = subprocess.run(
        [*command, str(source), "-o", str(output)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stderr


def demangle(names: list[str]) -> list[str]:
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        return names
    result = subprocess.run([tool, *names], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def parse(report: str) -> list[Usage]:
    """The kernels in the output of ``ptxas -v``."""
    entry = re.compile(
        r"Compiling entry function '(?P<name>\S+)'"
        r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill"
        r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    usages = []
    for match in entry.finditer(report):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        usages.append(
            Usage(
                match["name"],
                int(match["registers"]),
                int(shared[1]) if shared else 0,
                int(match["stack"]),
                int(match["stores"]) + int(match["loads"]),
            )
        )
    return usages


def table(found: dict[str, list[Usage]]) -> list[str]:
    """One line per kernel template and architecture."""
    groups: dict[tuple[str, str], list[Usage]] = {}
    for architecture, usages in found.items():
        for usage, name in zip(usages, demangle([u.kernel for u in usages]), strict=True):
            short = re.search(r"(\w+)(?:<.*>)?\(", name.replace("(anonymous namespace)::", ""))
            groups.setdefault((short[1] if short else name, architecture), []).append(usage)
    lines = [
        f"{'kernel':32} {'arch':6} {'variants':>8} {'registers':>9} {'shared':>7} {'stack':>5} {'spills':>6}"
    ]
    for (kernel, architecture), usages in sorted(groups.items()):
        registers = sorted(u.registers for u in usages)
        lines.append(
            f"{kernel:32} {architecture:6} {len(usages):8} {f'{registers[0]}..{registers[-1]}':>9} "
            f"{max(u.shared_bytes for u in usages):7} {max(u.stack_bytes for u in usages):5} "
            f"{sum(u.spill_bytes for u in usages):6}"
        )
    return lines


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Iterator[dict[str, list[Usage]]]:
    usages: dict[str, list[Usage]] = {architecture: [] for architecture in ARCHITECTURES}
    yield usages
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *table(usages), sep="\n")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_without_spills(
    source: Path, architecture: str, tmp_path: Path, found: dict[str, list[Usage]]
) -> None:
    report = compile_source(source, architecture, tmp_path / "kernels.cubin", "-cubin", "-Xptxas", "-v")
    usages = parse(report)
    # These have no kernels of their own, only calls of those in other files.
    assert usages or source.name in ("linear.cu", "conv2d.cu"), "ptxas reported no kernel"
    found[architecture] += usages
    spilling = [usage for usage in usages if usage.spill_bytes or usage.stack_bytes]
    assert not spilling, "\n".join(map(str, spilling))


@pytest.mark.parametrize(
    "name",
    [
        "activation.cu",
        "avg_pool2d.cu",
        "batch_norm.cu",
        "cross_entropy.cu",
        "embedding.cu",
        "interpolate.cu",
        "prelu.cu",
        "softmax.cu",
    ],
)
def test_packs_move_16_bytes_at_once(name: str, tmp_path: Path) -> None:
    """The compiler may split an access it cannot see to be aligned, down to single bytes."""
    ptx = tmp_path / "kernels.ptx"
    compile_source(ROOT / "csrc" / "cuda" / name, "sm_90", ptx, "-ptx")
    code = ptx.read_text()
    assert re.search(r"ld\.global\.v4", code)
    assert re.search(r"st\.global\.wb\.v4", code)
    if name != "batch_norm.cu":  # its mask is bytes
        assert not re.search(r"(ld|st)\.global\.[us]8", code)


@pytest.mark.skipif(find_disassembler() is None, reason="cuobjdump was not found")
@pytest.mark.parametrize("name", ["conv2d_products.cu", "conv2d_weight.cu", "conv2d_max_pool2d.cu"])
def test_convolutions_run_on_tensor_cores(name: str, tmp_path: Path) -> None:
    """Matrix instructions, their loads from shared memory, and asynchronous copies into it."""
    cubin = tmp_path / "kernels.cubin"
    compile_source(ROOT / "csrc" / "cuda" / name, "sm_90", cubin, "-cubin")
    tool = str(find_disassembler())
    sass = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    kernels = [k for k in sass.split("Function : ")[1:] if "TensorCores" in k.splitlines()[0]]
    assert kernels
    for kernel in kernels:
        kind = kernel.splitlines()[0]
        # Only TF32 operands that are not innermost, the weight gradient's, are read word by word.
        loads = ["LDS"] if "TensorCoresIf" in kind and name == "conv2d_weight.cu" else ["LDSM"]
        for instruction in ["HMMA", "LDGSTS", *loads]:
            assert re.search(rf"\b{instruction}\b", kernel), f"{kind} has no {instruction}"
