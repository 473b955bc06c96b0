"""The suite notices a broken kernel: copies of the CPU sources with one mistake each must fail it.

Each mistake is one that a kernel library has really made, or that would be easy to make. A replacement that
no longer applies fails the test, so that mutants follow the sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from .suite.processes import ROOT, run_python

_COMPILER = shutil.which(os.environ.get("CXX", "g++"))
pytestmark = pytest.mark.skipif(_COMPILER is None, reason="no C++ compiler")


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in ``file``; ``compile`` are the sources that see it."""

    file: str
    old: str
    new: str
    compile: tuple[str, ...]

    @property
    def path(self) -> Path:
        return ROOT / "csrc" / self.file


_CE, _SOFTMAX, _NLL = ("cross_entropy",), ("softmax",), ("nll_loss",)
MUTANTS = {
    "target_gradient_has_the_wrong_sign": Mutant(
        "math/cross_entropy.h",
        "return probability * row.on_probability - q * row.on_target;",
        "return probability * row.on_probability + q * row.on_target;",
        _CE,
    ),
    "smoothing_is_divided_by_one_class_less": Mutant(
        "math/cross_entropy.h", "label_smoothing / num_classes", "label_smoothing / (num_classes - T(1))", _CE
    ),
    "mean_divides_by_rows_instead_of_weights": Mutant(
        "cpu/cross_entropy_rows.h", "sum.weight += p.class_weight(y);", "sum.weight += 1;", _CE
    ),
    "ignored_rows_are_not_skipped_forward": Mutant(
        "cpu/cross_entropy_rows.h", "y != p.ignore_index) {", "y != -12345) {", _CE
    ),
    "ignored_rows_get_probabilities_as_gradient": Mutant(
        "cpu/cross_entropy_rows.h", "plan.zero = grad_lse == Acc(0);", "plan.zero = false;", _CE
    ),
    "ignored_rows_are_multiplied_by_zero_in_panels": Mutant(
        "cpu/cross_entropy_rows.h",
        "select_greater(keep.vec(i), V(Acc(0)), grad, V(Acc(0)))",
        "grad * keep.vec(i)",
        _CE,
    ),
    "gradient_of_z_loss_lacks_its_factor_2": Mutant(
        "math/cross_entropy.h", "scale * T(2) * p.z_loss", "scale * p.z_loss", _CE
    ),
    "sample_weight_is_left_out_of_the_gradient": Mutant(
        "math/cross_entropy.h", "const T scale = grad * sample_weight;", "const T scale = grad;", _CE
    ),
    "running_maximum_starts_at_zero": Mutant(
        "cpu/rows.h", "MaxSum<acc_t<T>> r{-math::infinity<acc_t<T>>(), 0};", "MaxSum<acc_t<T>> r{0, 0};", _CE
    ),
    "last_lane_of_a_partial_vector_is_lost": Mutant(
        "cpu/rows.h", "store_partial(p, x, lanes);", "store_partial(p, x, lanes - 1);", _CE
    ),
    "missing_lanes_of_a_sum_of_exp_hold_zero": Mutant(
        "cpu/rows.h",
        "reduce_row(x, n, acc_t<T>(0), -math::infinity<acc_t<T>>(), join, add<V>)",
        "reduce_row(x, n, acc_t<T>(0), acc_t<T>(0), join, add<V>)",
        _CE,
    ),
    "softmax_gradient_forgets_the_row_sum": Mutant(
        "math/softmax.h", "return y * (grad - dot);", "return y * grad;", _SOFTMAX
    ),
    "log_softmax_gradient_uses_the_log": Mutant(
        "math/softmax.h", "return grad - exp(y) * grad_sum;", "return grad - y * grad_sum;", _SOFTMAX
    ),
    "nll_gradient_ignores_the_weight": Mutant(
        "math/nll_loss.h", "return -weight * grad;", "return -grad + T(0) * weight;", _NLL
    ),
    "nll_gradient_of_a_mean_is_not_divided": Mutant(
        "cpu/nll_loss.cpp", "if (reduction == Reduction::kMean) grad /= total;", "(void)total;", _NLL
    ),
    # Noticed because fresh memory holds NaN.
    "gradient_is_not_zeroed_first": Mutant(
        "cpu/nll_loss.cpp", "memset(image, 0, sizeof(T) * s.classes * s.inner);", "", _NLL
    ),
}

SOURCES = sorted(path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp"))


def compile_object(tree: Path, source: str) -> Path:
    """The baseline variant of one source of ``tree``; -O1, since speed does not matter here."""
    include = Path(torch.__file__).parent / "include"
    target = tree / f"{source}.o"
    flags = ["-std=c++17", "-O1", "-w", "-fPIC", "-fvisibility=hidden", f"-isystem{include}"]
    flags += [f"-isystem{include}/torch/csrc/api/include", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    subprocess.run(
        [str(_COMPILER), *flags, "-c", str(tree / "cpu" / f"{source}.cpp"), "-o", str(target)], check=True
    )
    return target


def link(objects: list[Path], library: Path) -> Path:
    torch_lib = Path(torch.__file__).parent / "lib"
    command = [str(_COMPILER), "-shared", *map(str, objects), "-o", str(library), f"-L{torch_lib}"]
    subprocess.run([*command, "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"], check=True)
    return library


def build_mutant(folder: Path, originals: dict[str, Path], mutant: Mutant) -> Path:
    tree = folder / "csrc"
    shutil.copytree(ROOT / "csrc", tree, ignore=shutil.ignore_patterns("cuda"))
    changed = tree / mutant.file
    changed.write_text(changed.read_text().replace(mutant.old, mutant.new))
    rebuilt = {source: compile_object(tree, source) for source in mutant.compile}
    return link(list({**originals, **rebuilt}.values()), folder / "libmutant.so")


# Forks one child per library after the slow import of torch; it loads the library in place of the real one.
_JUDGE = """
import os, sys
import pytest, torch, torch.testing
real = torch.ops.load_library
for library in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork() == 0:
        torch.ops.load_library = lambda path, library=library: real(library)
        from tests.suite import smoke
        from tests.suite.backends import CPP
        failed = smoke.failures(CPP, at_most=3)
        print(library, len(failed), *[name.replace(" ", "") for name in failed], flush=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0, library
"""


@pytest.mark.parametrize("name", MUTANTS)
def test_mutation_still_applies(name: str) -> None:
    assert MUTANTS[name].path.read_text().count(MUTANTS[name].old) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_every_mutant_fails_the_suite_and_the_original_passes(tmp_path: Path) -> None:
    original = tmp_path / "original"
    shutil.copytree(ROOT / "csrc", original, ignore=shutil.ignore_patterns("cuda"))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        objects = dict(zip(SOURCES, pool.map(lambda s: compile_object(original, s), SOURCES), strict=True))
        folders = [tmp_path / name for name in MUTANTS]
        libraries = list(pool.map(build_mutant, folders, [objects] * len(folders), MUTANTS.values()))
    libraries.insert(0, link(list(objects.values()), tmp_path / "liboriginal.so"))
    environment = {"PYOPS_BACKEND": None, "TRITON_INTERPRET": None}
    output = run_python("-c", _JUDGE, *map(str, libraries), environment=environment).stdout
    verdicts = {Path(line.split()[0]): line.split()[1:] for line in output.splitlines()}
    assert verdicts[libraries[0]] == ["0"], f"the original fails: {verdicts[libraries[0]]}"
    survivors = [path.parent.name for path in libraries[1:] if verdicts[path][0] == "0"]
    assert not survivors
