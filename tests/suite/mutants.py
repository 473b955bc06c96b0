"""A mistake in a source, for ``tests/build/test_mutation.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .processes import ROOT


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


@dataclass(frozen=True)
class TritonMutant:
    """``old`` becomes ``new`` in ``file`` of the Triton kernels; the tiny case called ``case`` notices."""

    file: str
    old: str
    new: str
    case: str

    @property
    def path(self) -> Path:
        return ROOT / "triton_kernels" / self.file
