"""Directives that make Markdown of the code: an op's files and measured cases, a network's recipes."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import re
from pathlib import Path
from typing import Any

import figures
import pictures
from docutils import nodes
from pyops.models import get_network
from pyops.models.commands.catalog import NOTES, catalog
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyops.ops.conv2d import algorithm_names

ROOT = Path(__file__).resolve().parents[2]

#: What each place holds of an op. A file is the op's if its name is; a folder, if its name is.
_PLACES = (
    ("csrc/math", "the formula, forward and derivative"),
    ("pyops/reference", "the same as plain torch operations"),
    ("pyops/ops", "checks, schema, autograd, public functions"),
    ("pyops/nn", "modules"),
    ("csrc/binding", "checks that C++ and CUDA share"),
    ("csrc/cpu", "C++, for CPUs"),
    ("csrc/cuda", "CUDA C++"),
    ("triton_kernels", "Triton"),
    ("tests/suite/ops", "the op as the shared tests see it"),
    ("tests/ops", "tests of this op alone"),
    ("benchmarks/cases", "what is measured"),
)


def files_of_op(names: list[str]) -> str:
    """The files and folders of an op, under any of ``names``, as a Markdown table."""
    rows = ["| file | what it is |", "|---|---|"]
    for place, what in _PLACES:
        stems = {*names, *(f"test_{name}" for name in names)}
        found = sorted(
            path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "")
            for path in (ROOT / place).rglob("*")
            if path.name.split(".")[0] in stems
            and "__pycache__" not in path.parts
            and path.suffix in ("", ".h", ".cpp", ".cu", ".cuh", ".py")
        )
        inside = [f for f in found if not any(f != g and g.endswith("/") and f.startswith(g) for g in found)]
        if inside:
            rows.append(f"| {', '.join(f'`{file}`' for file in inside)} | {what} |")
    return "\n".join(rows)


#: Where each backend's sources are, and how they are called here.
_BACKENDS = (("csrc/cpu", "C++"), ("csrc/cuda", "CUDA C++"), ("triton_kernels", "Triton"))


def how_backends_compute(names: list[str]) -> str:
    """What the sources of an op say of themselves at their head, by backend."""
    items = []
    for place, backend in _BACKENDS:
        for path in sorted((ROOT / place).rglob("*")):
            if path.suffix in (".cpp", ".cu", ".py") and path.stem in names:
                text = re.sub(r"([*<$])", r"\\\1", _head(path))
                file = path.relative_to(ROOT).as_posix()
                items.append(f"{backend} (`{file}`)\n: " + text.replace("\n", "\n  "))
    return "\n\n".join(items)


def _head(path: Path) -> str:
    """The comment that a C++ file begins with, or a module's docstring."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return inspect.cleandoc(ast.get_docstring(ast.parse(text)) or "")
    lines = itertools.takewhile(lambda line: line.startswith("//"), text.splitlines())
    return "\n".join(line[2:].strip() for line in lines)


class _Markdown(SphinxDirective):
    """A directive whose content is Markdown that a function makes of its arguments."""

    required_arguments = 1
    optional_arguments = 9

    def text(self) -> str:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(Path(__file__)))
        return self.parse_text_to_nodes(self.text(), allow_section_headings=False)


class OpFiles(_Markdown):
    """``{op-files} NAME [NAME ...]``: where the code of an op is."""

    def text(self) -> str:
        return files_of_op(self.arguments)


class OpBackends(_Markdown):
    """``{op-backends} NAME [NAME ...]``: how each backend computes the op."""

    def text(self) -> str:
        return how_backends_compute(self.arguments)


class OpFigures(_Markdown):
    """``{op-figures} NAME``: bytes, FLOPs, floor and measured times of the op's cases."""

    def text(self) -> str:
        note = (
            "Bytes and FLOPs are what the formula needs, each operand once per pass. The floor is the time "
            "that they take at the machine's measured bandwidth and the rate of torch's product of large "
            "matrices. Over 100 %, the data lay in the caches, the algorithm forms fewer products than the "
            "formula has, or its products are faster than torch's. Times are medians, all ways in turns in "
            "one process."
        )
        return "\n\n".join((figures.machine_line(), figures.of_op(self.arguments[0]), note))


class Conv2dAlgorithms(_Markdown):
    """``{conv2d-algorithms} DIRECTION``: the names in the table of the library, in its order."""

    def text(self) -> str:
        names = algorithm_names()[self.arguments[0]]
        return ", ".join(f"`{name}`" for name in names) + "."


class Ladder(_Markdown):
    """``{ladder} NAME``: the measured times of its versions."""

    def text(self) -> str:
        return figures.of_ladder(self.arguments[0])


class WholeReport(_Markdown):
    """``{results}``: the committed report of the machine whose figures the manual shows."""

    required_arguments = 0

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(figures.whole_report(), allow_section_headings=True)


class NetworkFacts(_Markdown):
    """``{network} NAME [NAME ...]``: sizes, commands, recipes and, where they exist, figures.

    Several networks are those of one family, which have one set of recipes.
    """

    def text(self) -> str:
        networks = [get_network(name) for name in self.arguments]
        first = networks[0]
        if any((n.recipe, n.recipes) != (first.recipe, first.recipes) for n in networks):
            raise self.error(f"{', '.join(self.arguments)} have different recipes")
        parts = [
            "\n".join(f"- {_size(network.name)}" for network in networks),
            "```\n" + "\n".join(f"pyops train {network.name}" for network in networks) + "\n```",
            _recipes(_entries()[first.name].recipes),
        ]
        if options := [f"`{name}` ({default})" for name, default in first.defaults.items()]:
            parts.append("Options of the network: " + ", ".join(options) + ".")
        if table := figures.of_networks(self.arguments):
            parts += [table, figures.machine_line()]
        for name in self.arguments:
            parts += _pictures(name)
        return "\n\n".join(parts)


def _pictures(network: str) -> list[str]:
    """What a run of the network has drawn, with the command that does the same."""
    found = pictures.pictures(network)
    lines = [f"![{pictures.SHOWN[kind]}](../pictures/networks/{path.name})" for kind, path in found.items()]
    return [f"What `{pictures.command(network)}` draws:", *lines] if lines else []


_entries = functools.cache(lambda: {entry.name: entry for entry in catalog()})


def _size(name: str) -> str:
    entry = _entries()[name]
    shape = " x ".join(map(str, entry.input_shape))
    text = f"**{name}**: {entry.parameters:,} parameters on its default data, `{entry.data}` ({shape})"
    return f"{text}; {entry.notes_parameters:,} as the notes build it" if entry.notes_parameters else text


class ModuleText(_Markdown):
    """``{module-text} MODULE``: the docstring of a module, which is Markdown as well."""

    def text(self) -> str:
        text = inspect.getdoc(importlib.import_module(self.arguments[0])) or ""
        return text.replace("\nShapes:", "\n\nShapes:")


def _recipes(recipes: dict[str, dict[str, Any]]) -> str:
    """A column for each recipe, a row for each entry that is not the default in all of them."""
    columns = ["as the notes have it" if name == NOTES else f"on `{name}`" for name in recipes]
    rows = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for entry in recipes[NOTES]:
        rows.append(f"| {entry} | " + " | ".join(_shown(recipe[entry]) for recipe in recipes.values()) + " |")
    return "\n".join(rows)


def _shown(value: Any) -> str:
    if hasattr(value, "items"):
        return ", ".join(f"`--option {key}={item}`" for key, item in value.items()) or "-"
    return "-" if value is None else f"{value}"


def setup(app: Sphinx) -> dict[str, bool]:
    for name, directive in (
        ("op-files", OpFiles),
        ("op-backends", OpBackends),
        ("op-figures", OpFigures),
        ("results", WholeReport),
        ("ladder", Ladder),
        ("conv2d-algorithms", Conv2dAlgorithms),
        ("network", NetworkFacts),
        ("module-text", ModuleText),
    ):
        app.add_directive(name, directive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
