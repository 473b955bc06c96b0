"""What is in the CUDA library: kernels that spill no registers, wide accesses, tensor-core instructions.

nvcc has compiled every source for every architecture already, with warnings as errors in ``.ci/run``; here
cuobjdump reads the result. Registers and shared memory of the kernels are printed as a table in the end.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.suite.cuda_code import Code
from tests.suite.cuda_library import LIBRARY, SOURCES, Usage, cuobjdump, demangle, missing_reason
from tests.suite.cuda_library import usages as all_usages
from tests.suite.ops import joined

ARCHITECTURES = ("sm_80", "sm_90")
CODE: dict[str, list[Code]] = joined("CUDA_CODE")


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


@pytest.fixture(scope="module")
def usages(request: pytest.FixtureRequest) -> Iterator[list[Usage]]:
    found = all_usages()
    yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *table([u for u in found if u.architecture in ARCHITECTURES]), sep="\n")


@pytest.fixture(scope="module")
def sass(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of what the sources became on sm_90: one file of instructions each."""
    folder = tmp_path_factory.mktemp("sass")
    cuobjdump("-xelf", ".sm_90.", LIBRARY, directory=folder)
    yield folder
    shutil.rmtree(folder)


def instructions(folder: Path, source: str) -> str:
    return cuobjdump("-sass", folder / f"{source}.sm_90.cubin")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_no_kernel_spills(source: str, architecture: str, usages: list[Usage]) -> None:
    kernels = [u for u in usages if (u.source, u.architecture) == (source, architecture)]
    assert kernels or CODE.get(source) == [], "it has no kernel in the library"
    assert [u for u in kernels if u.stack_bytes] == []


@pytest.mark.parametrize(
    ("source", "code"), [(source, code) for source, codes in CODE.items() for code in codes]
)
def test_kernels_have_the_instructions_that_ops_count_on(source: str, code: Code, sass: Path) -> None:
    parts = [instructions(sass, source)]
    if code.kernels is not None:
        kernels = parts[0].split("Function : ")[1:]
        parts = [kernel for kernel in kernels if re.search(code.kernels, kernel.splitlines()[0])]
    assert parts
    for part in parts:
        kernel = part.strip().splitlines()[0]
        missing = [wanted for wanted in code.has if not re.search(rf"\b{wanted}\b", part)]
        assert not missing, f"{kernel} has no {missing}"
        found = [unwanted for unwanted in code.lacks if re.search(rf"\b{unwanted}\b", part)]
        assert not found, f"{kernel} has {found}"


@pytest.mark.parametrize("source", [source for source in SOURCES if CODE.get(source) != []])
def test_no_global_access_to_shared_memory(source: str, sass: Path) -> None:
    """A kernel that makes a generic address of shared memory needs its window's address, SR_SWIN.

    batch_norm kept its groups in shared memory by `__stwb`, which is a global store, and that is an illegal
    access on every GPU. No kernel of ours has to make such an address.
    """
    assert "SR_SWIN" not in instructions(sass, source)
