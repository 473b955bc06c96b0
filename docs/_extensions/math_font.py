"""STIX Two Math, as the package ``ziamath`` brings it: for machines that have no font for formulas."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def folder() -> str:
    """The folder that holds the font, which is copied beside the pages."""
    spec = find_spec("ziamath")  # found, not imported
    if spec is None or spec.origin is None:
        raise RuntimeError("the manual needs ziamath, for its font: pip install 'pyops-kernels[docs]'")
    return str(Path(spec.origin).parent / "fonts")
