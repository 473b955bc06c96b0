"""Mistakes by rule in the text of Triton kernels: one for each of some lines, the same every time."""

from __future__ import annotations

import ast
import re
import zlib

from tests.suite.mutants import TritonMutant

#: What is made of a line, by name. Masks of loads are left: what a lane without a mask reads is not used, and
#: the interpreter does not see that it should not be read (the PTX machine does).
RULES: dict[str, tuple[str, str]] = {
    "off_by_one": (r"(?<=\w) < (?=\w)", " <= "),
    "one_less": (r"(?<=\w) >= (?=\w)", " > "),
    "other_extreme": (r"tl\.maximum\(", "tl.minimum("),
    "other_reduction": (r"tl\.sum\(", "tl.max("),
    "wrong_sign": (r"(?<=[\w)\]]) - (?=[\w(])", " + "),
    "difference": (r"(?<=[\w)\]]) \+ (?=[\w(])", " - "),
    "forgets_the_rest": (r" \+= ", " = "),
    "quotient": (r"(?<=[\w)\]]) / (?=[\w(])", " * "),
    "other_side": (r"tl\.where\((\w+), ([^,()]+), ([^,()]+)\)", r"tl.where(\1, \3, \2)"),
    "wrong_scale": (r"(?<=[\w)\]]) \* (?=[\w(])", " * 2 * "),
    "stores_everywhere": (r"(tl\.store\(.*), mask=[^,()]+\)", r"\1)"),
}


def kernel_lines(text: str) -> list[int]:
    """Numbers of the lines in functions that Triton compiles, without their signatures and docstrings."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
            first = node.body[1 if isinstance(node.body[0], ast.Expr) and len(node.body) > 1 else 0]
            found += range(first.lineno, (node.end_lineno or first.lineno) + 1)
    return sorted(set(found))


def function_at(text: str, line: int) -> str:
    """Name of the innermost function that holds that line."""
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    around = [node for node in functions if node.lineno <= line <= (node.end_lineno or node.lineno)]
    return max(around, key=lambda node: node.lineno).name


def mutants(file: str, text: str, most: int) -> dict[str, TritonMutant]:
    """At most ``most`` mutants of ``file``, on lines spread by a hash of what is changed."""
    lines = text.split("\n")
    candidates = []
    for number in kernel_lines(text):
        line = lines[number - 1]
        code = line.split("#")[0]
        if "static_assert" in code or "constexpr" in code:
            continue
        for name, (old, new) in RULES.items():
            changed = re.sub(old, new, code, count=1)
            if changed != code:
                order = zlib.crc32(f"{file}{line}{name}".encode())
                mutant = TritonMutant(file, line, changed + line[len(code) :], "", number)
                label = f"{file.removesuffix('.py').replace('/', '_')}_{number}_{name}"
                candidates.append((order, number, label, mutant))
    chosen: dict[int, tuple[str, TritonMutant]] = {}
    for _, number, label, mutant in sorted(candidates, key=lambda c: c[0]):
        if number not in chosen and len(chosen) < most:
            chosen[number] = (label, mutant)
    return dict(chosen.values())
