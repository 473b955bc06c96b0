"""Docstrings as this project writes them, made reST: shapes hold stars, names stand without their module."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_LITERAL = re.compile(r"(``.*?``|:[\w:]+:`[^`]*`)")
_SHORT = re.compile(r":(\w+):`(\w+)`")


def _escaped(line: str) -> str:
    parts = _LITERAL.split(line)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = _SHORT.sub(r":\1:`.\2`", part)  # found wherever it is
        else:
            parts[i] = re.sub(r"([*|])", r"\\\1", part)  # [N, *shape], |w|
    return "".join(parts)


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [_escaped(line) for line in lines]
    if what in ("attribute", "property", "data") and lines:
        lines[0] = lines[0].replace(": ", " – ")  # napoleon takes what is before a colon for a type


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
