"""Formulas as MathML, made while the manual is built: no script, nothing to fetch when it is read."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

_FUNCTIONS = ("log", "exp", "tanh", "sin", "cos")
_RANGED = ("∑", "max", "min")  # what they run over stands below them where there is room
_OPENING = ("(", "[", "{", ",", "=")


def mathml(latex: str, display: str) -> str:
    """MathML of a formula in LaTeX; ``display`` is ``"inline"`` or ``"block"``."""
    try:
        root = ElementTree.fromstring(convert(latex, display=display))
    except Exception as error:
        raise SphinxError(f"not a formula: {latex!r}: {error}") from error
    for element in root.iter():
        _, _, tag = element.tag.rpartition("}")
        if tag == "msub" and display == "block" and element[0].text in _RANGED:
            element.tag = "munder"
        _set_signs(element)
        _space_functions(element)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return ElementTree.tostring(root, encoding="unicode")


def _set_signs(parent: ElementTree.Element) -> None:
    """A minus that begins a term is a sign, not a difference."""
    before = "("
    for element in parent:
        if element.text == "−" and before in _OPENING:
            element.set("form", "prefix")
        before = element.text or ""


def _space_functions(parent: ElementTree.Element) -> None:
    """A thin space between log or its like and an argument without brackets."""
    children = [] if parent.tag.startswith("msu") or "}msu" in parent.tag else list(parent)
    for i in reversed(range(len(children) - 1)):
        if children[i].text in _FUNCTIONS and children[i + 1].text not in ("(", "["):
            parent.insert(i + 1, ElementTree.Element("mspace", width="0.17em"))


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
