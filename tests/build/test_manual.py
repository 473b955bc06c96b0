"""The manual: its examples run, nothing public lacks a page, and the files that it names exist.

``make docs`` builds it and finds the rest: links, references and directives that lead nowhere.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pyops.models import network_names

from pyops import functional as F
from tests.suite.processes import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def examples(page: Path) -> list[str]:
    return _PYTHON.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=name)
def test_the_examples_of_a_page_run(page: Path) -> None:
    """One after the other, as a reader runs them who goes through the page."""
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": name(page)}
    text = page.read_text(encoding="utf-8")
    for code in _PYTHON.finditer(text):
        line = text.count("\n", 0, code.start(1))
        exec(compile("\n" * line + code.group(1), str(page), "exec"), namespace)  # errors name its line


def test_every_op_page_has_an_example_that_asserts() -> None:
    others = ("index", "results", "measuring")
    pages = [page for page in PAGES if page.parent.name == "ops" and page.stem not in others]
    assert pages
    assert not [name(page) for page in pages if not re.search(r"assert", "".join(examples(page)))]


def test_every_public_function_is_on_a_page_of_its_op() -> None:
    modules = {getattr(F, function).__module__.rpartition(".")[2] for function in F.__all__}
    pages = {page.stem for page in (DOCS / "ops").glob("*.md")}
    assert {module.removesuffix("_stack") for module in modules} <= pages


def test_every_network_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "networks").glob("*.md"))
    named = re.findall(r"^```\{network\} (.+)$", text, re.MULTILINE)
    assert sorted(" ".join(named).split()) == network_names()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    """Of paths from the root, such as ``csrc/...``, but for what is built; ``<op>`` stands for any."""
    tops = "csrc|pyops|models|tests|benchmarks|triton_kernels|docs"
    paths = re.findall(rf"`((?:{tops})/(?!_lib/)[\w./<>*-]+)`", page.read_text(encoding="utf-8"))
    patterns = {path: re.sub(r"<\w+>", "*", path).rstrip("/") for path in paths}
    assert not [path for path, pattern in patterns.items() if not any(ROOT.glob(pattern))]


def test_every_family_of_networks_shows_what_a_run_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has several networks, one of which is trained for it; files stay small."""
    monkeypatch.syspath_prepend(str(DOCS / "networks"))
    import pictures

    for page in (DOCS / "networks").glob("*.md"):
        named = re.findall(r"^```\{network\} (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        shown = [network for network in " ".join(named).split() if pictures.pictures(network)]
        assert len(shown) == 1 or not named, name(page)
    kept = [path for network in pictures.RUNS for path in pictures.pictures(network).values()]
    assert sorted(kept) == sorted(pictures.FOLDER.glob("*.png"))
    assert max(path.stat().st_size for path in kept) < 150_000
