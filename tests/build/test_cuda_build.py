"""What is in the CUDA library: kernels without local memory, wide accesses, tensor-core instructions.

nvcc has compiled every source for every architecture already, with warnings as errors in ``.ci/run``; here
cuobjdump reads the result. Registers and shared memory of the kernels are printed as a table in the end.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyops._availability import build_facts
from tests.suite.cuda_code import Code
from tests.suite.cuda_library import (
    LIBRARY,
    SOURCES,
    Usage,
    cuobjdump,
    demangle,
    find_tool,
    missing_reason,
    unwanted_code,
    usages,
)
from tests.suite.ops import joined

CODE: dict[str, list[Code]] = joined("CUDA_CODE")
USAGES = [] if missing_reason() else usages()
#: What there is machine code of in the library, and the architectures whose instructions ``CODE`` describes.
COMPILED = sorted({(u.source, u.architecture) for u in USAGES})
DESCRIBED = ("sm_80", "sm_90")

pytestmark = pytest.mark.skipif(missing_reason() is not None, reason=str(missing_reason()))


def table(usages: list[Usage]) -> list[str]:
    """One line per kernel template and architecture."""
    groups: dict[tuple[str, str], list[Usage]] = {}
    for usage, name in zip(usages, demangle([u.kernel for u in usages]), strict=True):
        short = re.search(r"(\w+)(?:<.*>)?\(", name.replace("(anonymous namespace)::", ""))
        groups.setdefault((short[1] if short else name, usage.architecture), []).append(usage)
    lines = [f"{'kernel':32} {'arch':7} {'variants':>8} {'registers':>9} {'shared':>7} {'stack':>5}"]
    for (kernel, architecture), group in sorted(groups.items()):
        registers = sorted(u.registers for u in group)
        lines.append(
            f"{kernel:32} {architecture:7} {len(group):8} {f'{registers[0]}..{registers[-1]}':>9} "
            f"{max(u.shared_bytes for u in group):7} {max(u.stack_bytes for u in group):5}"
        )
    return lines


@pytest.fixture(scope="module", autouse=True)
def print_table(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *table([u for u in USAGES if u.architecture in DESCRIBED]), sep="\n")


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of what the sources became: a file for each and architecture."""
    folder = tmp_path_factory.mktemp("cubins")
    cuobjdump("-xelf", "all", LIBRARY, directory=folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_compiled_for_every_architecture(source: str) -> None:
    """9.0a may stand for 9.0."""
    built = {f"sm_{arch.removesuffix('+PTX').replace('.', '')}" for arch in build_facts()["cuda_archs"]}
    compiled = {architecture.rstrip("af") for name, architecture in COMPILED if name == source}
    assert compiled == ({arch.rstrip("af") for arch in built} if CODE.get(source) != [] else set())


@pytest.mark.parametrize(("source", "architecture"), COMPILED)
def test_no_kernel_spills(source: str, architecture: str) -> None:
    kernels = [u for u in USAGES if (u.source, u.architecture) == (source, architecture)]
    assert [u for u in kernels if u.stack_bytes] == []


@pytest.mark.parametrize(
    ("source", "architecture"),
    [pytest.param(*of, marks=[pytest.mark.nightly] * (of[1] == "sm_80")) for of in COMPILED],
)
def test_machine_code(source: str, architecture: str, cubins: Path) -> None:
    """Nothing that no kernel may have, and what the op counts on."""
    text = cuobjdump("-sass", cubins / f"{source}.{architecture}.cubin")
    assert unwanted_code(text, architecture) == []
    for code in CODE.get(source, ()) if architecture.rstrip("af") in DESCRIBED else ():
        check_code(text, code)


def check_code(text: str, code: Code) -> None:
    parts = [text]
    if code.kernels is not None:
        kernels = text.split("Function : ")[1:]
        parts = [kernel for kernel in kernels if re.search(code.kernels, kernel.splitlines()[0])]
    assert parts
    for part in parts:
        kernel = part.strip().splitlines()[0]
        missing = [wanted for wanted in code.has if not re.search(rf"\b{wanted}\b", part)]
        assert not missing, f"{kernel} has no {missing}"
        found = [unwanted for unwanted in code.lacks if re.search(rf"\b{unwanted}\b", part)]
        assert not found, f"{kernel} has {found}"


# What must be found, and a kernel that has nothing of it.
TOY = """
__global__ void local(float* out, int i) {
  float x[32];
  for (int k = 0; k < 32; ++k) x[k] = out[k];
  x[i] = 1.f;
  for (int k = 0; k < 32; ++k) out[64 + k] = x[(k * i) & 31];
}
__global__ void generic(float* out, bool shared) {
  __shared__ float x[32];
  *(shared ? x + threadIdx.x : out) = 2.f;
  __syncthreads();
  out[1] = x[3];
}
__global__ void window(float4* out) {
  __shared__ float4 x[32];
  __stwb(&x[threadIdx.x], make_float4(1, 2, 3, 4));
  __syncthreads();
  out[0] = x[3];
}
__global__ void good(float* out) {
  __shared__ float x[32];
  x[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  atomicAdd(out, x[31 - threadIdx.x]);
}
"""


@pytest.mark.skipif(find_tool("nvcc") is None, reason="nvcc was not found")
@pytest.mark.parametrize("architecture", sorted({architecture for _, architecture in COMPILED}))
def test_unwanted_code_is_found(architecture: str, tmp_path: Path) -> None:
    (tmp_path / "toy.cu").write_text(TOY)
    command = [str(find_tool("nvcc")), "-O3", f"-arch={architecture}", "-cubin", "-o", "toy.cubin", "toy.cu"]
    subprocess.run(command, cwd=tmp_path, check=True)
    kernels = cuobjdump("-sass", tmp_path / "toy.cubin").split("Function : ")[1:]
    found = {re.sub(r"^_Z\d", "", kernel)[:4]: unwanted_code(kernel, architecture) for kernel in kernels}
    window = "c[0x0][0x18]" if architecture.startswith("sm_8") else "SR_SWIN"
    assert found == {"loca": ["LDL", "STL"], "gene": [window, "ST"], "wind": [window], "good": []}
