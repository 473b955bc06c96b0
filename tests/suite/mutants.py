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
    """``old`` becomes ``new`` in ``file`` of the Triton kernels; the tiny case called ``case`` notices.

    Those that are made by rule have no such case, and a ``line`` whose whole text ``old`` is.
    """

    file: str
    old: str
    new: str
    case: str
    line: int | None = None

    @property
    def path(self) -> Path:
        return ROOT / "triton_kernels" / self.file

    def changed(self) -> str:
        """The text of the file with the mistake."""
        text = self.path.read_text()
        if self.line is None:
            return text.replace(self.old, self.new)
        lines = text.split("\n")
        assert lines[self.line - 1] == self.old
        lines[self.line - 1] = self.new
        return "\n".join(lines)
