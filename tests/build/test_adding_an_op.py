"""An op is added by adding its files: no file of the tree is edited, no list names it.

``toy_op/`` holds what an op takes, where it would stand in the tree. It is laid over a copy that has no other
kernels, since their compilation would take minutes.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pyops import _library
from tests.cuda_emulation.build import missing_reason
from tests.suite.processes import ROOT, one_at_a_time, run_python, shared_folder

TOY = Path(__file__).with_name("toy_op")
FILES = sorted(path.relative_to(TOY) for path in TOY.rglob("*.*") if "__pycache__" not in path.parts)
PARTS = ["benchmarks", "csrc", "models", "pyops", "tests", "triton_kernels"]
SETTINGS = ["LICENSE", "README.md", "pyproject.toml", "setup.py"]
BUILT_OR_MEASURED = shutil.ignore_patterns("__pycache__", "results", "_lib", "_build_info*", TOY.name)

pytestmark = pytest.mark.skipif(missing_reason() is not None, reason=str(missing_reason()))


def _left_out(folder: str, names: list[str]) -> set[str]:
    """What the copy has not: what was built or measured, and the kernels of other ops."""
    left_out = set(BUILT_OR_MEASURED(folder, names))
    if Path(folder).is_relative_to(ROOT / "csrc"):
        kept = {"build_info.cpp", "output_cache.cpp"}
        left_out |= {name for name in names if name.endswith((".cpp", ".cu")) and name not in kept}
    return left_out


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the toy's files in it, built."""
    copy = shared_folder(tmp_path_factory) / "tree_with_a_toy"
    with one_at_a_time(copy.with_suffix(".lock")):
        if not copy.exists():
            for part in PARTS:
                shutil.copytree(ROOT / part, copy / part, ignore=_left_out)
            for name in SETTINGS:
                shutil.copy(ROOT / name, copy / name)
            shutil.copytree(TOY, copy, dirs_exist_ok=True)
            variables = {"PYOPS_CPU_VARIANTS": _library.cpu_variant(), "PYOPS_WITH_CUDA": "0"}
            run_python("setup.py", "-q", "build_ext", "--inplace", environment=variables, directory=copy)
    return copy


def run_in(tree: Path, script: str, **environment: str) -> None:
    variables = {"PYTHONPATH": str(tree), "PYOPS_BACKEND": None, **environment}
    script = f"import torch, pyops, pyops.functional as F\n{script}"
    run_python("-c", script, environment=variables, directory=tree)


CALLS = """
x = torch.randn(9, 43, requires_grad=True)
with pyops.use_backend({backend!r}):
    assert pyops.backends.resolve(x, "toy_scale").backend == {backend!r}
    y = F.toy_scale(x, 3.0)
    assert torch.equal(y, x * 3.0)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full_like(x, 3.0))
"""

PUBLIC = """
assert "toy_scale" in F.__all__
assert "ToyScale" in pyops.nn.__all__
with pyops.use_backend("reference"):
    assert pyops.nn.ToyScale(3.0)(torch.ones(3)).tolist() == [3.0] * 3
"""

FOUND = """
from pyops.benchmarks import cases
from tests.suite import ops
assert "toy_scale-float32" in ops.joined("TRITON_CASES")
assert [case.op for case in cases.select(["toy_scale"], torch.device("cpu"))] == ["toy_scale"]
"""


def test_no_file_is_edited() -> None:
    assert len(FILES) <= 14
    assert not [path for path in FILES if (ROOT / path).exists()]


def test_what_it_includes_is_there() -> None:
    """Says at once, and without a compiler, what a moved header leaves behind."""
    text = "".join((TOY / path).read_text() for path in FILES if path.parts[0] == "csrc")
    included = re.findall(r'#include "(.*)"', text)
    assert included
    assert not [name for name in included if not any((root / "csrc" / name).exists() for root in (ROOT, TOY))]


def test_it_is_public_and_the_cpp_kernel_is_built_and_called(tree: Path) -> None:
    run_in(tree, PUBLIC + CALLS.format(backend="cpp"))


def test_triton_kernel_is_found_and_called(tree: Path) -> None:
    pytest.importorskip("triton")
    run_in(tree, CALLS.format(backend="triton"), TRITON_INTERPRET="1")


def test_cuda_kernel_compiles_and_is_called(tree: Path) -> None:
    run_in(tree, "from tests.cuda_emulation import build\nbuild.load()" + CALLS.format(backend="emulated"))


def test_benchmarks_and_triton_cases_have_it(tree: Path) -> None:
    run_in(tree, FOUND)


def test_suite_runs_its_checks(tree: Path) -> None:
    chosen = "toy_scale and cpp and not compile"  # torch.compile takes longer than all the others
    arguments = ("-q", "-p", "no:cacheprovider", "tests/test_contract.py", "-k", chosen)
    done = run_python("-m", "pytest", *arguments, environment={"PYTHONPATH": str(tree)}, directory=tree)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 10
