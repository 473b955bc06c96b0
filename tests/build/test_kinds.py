"""Activations, losses, cells and reductions have one number in Python, C++ and Triton."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyops
from pyops import kinds

ROOT = Path(pyops.__file__).parents[1]
ENUMS = {
    "ActivationKind": ("csrc/math/activation.h", kinds.ACTIVATIONS),
    "LossKind": ("csrc/math/loss.h", kinds.LOSSES),
    "CellKind": ("csrc/math/recurrent.h", kinds.CELLS),
    "Reduction": ("csrc/binding/tensor.h", kinds.REDUCTIONS),
}
NUMBER_OF = {name: value for name, value in vars(kinds).items() if name.isupper() and isinstance(value, int)}


def enumerators(name: str, path: str) -> dict[str, int]:
    """The members of a C++ enum by the names that Python has for them: kGeluTanh is GELU_TANH."""
    text = re.sub(r"//.*", "", (ROOT / path).read_text())
    body = re.search(rf"enum class {name}[^{{]*{{([^}}]*)}}", text)
    assert body is not None, f"{path} has no enum {name}"
    members = re.findall(r"k(\w+) = (\d+)", body[1])
    assert len(members) == len(body[1].strip(" ,\n").split(",")), "an enumerator without a number"
    return {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", member).upper(): int(number) for member, number in members}


def constants(path: Path) -> Iterator[tuple[str, int]]:
    """Triton's constants: ``RELU: tl.constexpr = tl.constexpr(1)``."""
    for name, number in re.findall(r"^_?(\w+)[^=\n]* = tl\.constexpr\((\d+)\)$", path.read_text(), re.M):
        yield name, int(number)


@pytest.mark.parametrize("name", ENUMS)
def test_cpp_has_the_numbers_of_python(name: str) -> None:
    path, numbers = ENUMS[name]
    found = enumerators(name, path)
    assert found == {member: NUMBER_OF[member] for member in found}
    assert sorted(found.values()) == list(numbers)


def test_triton_has_the_numbers_of_python() -> None:
    found = {pair for path in ROOT.glob("triton_kernels/**/*.py") for pair in constants(path)}
    known = {(name, number) for name, number in found if name in NUMBER_OF}
    assert known == {(name, NUMBER_OF[name]) for name, _ in known}
    assert {name for name, _ in known} >= NUMBER_OF.keys() - {"NONE", "MEAN", "SUM"}
