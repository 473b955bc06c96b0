"""The suite notices a broken kernel: copies of the CPU and Triton sources with one mistake each must fail it.

Each mistake is one that a kernel library has really made, or that would be easy to make. A replacement that
no longer applies fails the test, so that mutants follow the sources. ``make mutants`` makes many more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.mutation import cpp, rules, triton
from tests.mutation.__main__ import EQUIVALENT, equivalent


@pytest.mark.parametrize("name", [*cpp.MUTANTS, *triton.NAMED])
def test_mutation_still_applies(name: str) -> None:
    mutant = {**cpp.MUTANTS, **triton.NAMED}[name]
    assert mutant.path.read_text().count(mutant.old) == 1


@pytest.mark.skipif(cpp.COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.nightly)])
def test_mutants_fail_the_suite_and_the_original_passes(tmp_path: Path, every: int) -> None:
    """Each takes the compiler some seconds: every twelfth in `make test`."""
    assert not cpp.survivors(tmp_path, list(cpp.MUTANTS)[::every])


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="interpreted, and forks")
def test_every_triton_mutant_fails_its_case(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    verdicts = triton.caught(tmp_path, triton.NAMED)
    assert [name for name, by in verdicts.items() if by is None] == []


def test_mutants_that_cannot_be_noticed_are_named_by_what_they_change_and_not_by_line_numbers() -> None:
    drawn = triton.drawn()
    same = equivalent(drawn)
    assert set(same.values()) == set(EQUIVALENT.values())
    assert len(same) == len(EQUIVALENT)
    moved = {f"moved_{name}": mutant for name, mutant in drawn.items()}
    assert equivalent(moved) == {f"moved_{name}": why for name, why in same.items()}
    with pytest.raises(ValueError, match="no such mutants"):
        equivalent({name: mutant for name, mutant in drawn.items() if name not in same})


_KERNEL = '''
@triton.jit
def kernel(x, n: tl.constexpr):
    """The first - line."""
    inside = x < n
    total += x  # of < all
    tl.store(x, total - 1, mask=inside)


def launcher(x):
    return x - 1
'''


def test_rules_change_kernels_alone() -> None:
    drawn = rules.mutants("a/b.py", _KERNEL, 10)
    assert {mutant.line for mutant in drawn.values()} == {5, 6, 7}
    assert all(mutant.new != mutant.old for mutant in drawn.values())
    assert rules.mutants("a/b.py", _KERNEL, 10) == drawn
    assert len(rules.mutants("a/b.py", _KERNEL, 2)) == 2
