"""Reports of what was measured before.

``python -m pyops.benchmarks.report`` renders the Markdown in ``benchmarks/results`` from the tables there,
and the README's figures.
``python -m pyops.benchmarks.report FILE.json [--markdown]`` shows the raw results of a run; ``--html PAGE``
makes a page with pictures of them, and ``--results DIR`` puts them into the tables of DIR. In place of a JSON
file it also takes a folder with tables, such as one that came from a GPU machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import readme, rows, store, text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pyops.benchmarks.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", nargs="?", type=Path, metavar="FILE.json", help="or a folder with tables")
    parser.add_argument("--markdown", action="store_true", help="as Markdown")
    parser.add_argument("--html", type=Path, metavar="FILE", help="as a page with pictures; takes FILE.json")
    parser.add_argument("--results", type=Path, metavar="DIR", help="the folder of the tables")
    given = parser.parse_args(arguments)
    if given.source is None:
        folder = given.results or store.FOLDER
        report = store.read(folder)
        if not report.rows:
            parser.error(f"there are no tables in {folder}")
        store.add(report, folder)
        if folder == store.FOLDER and readme.README.is_file():
            readme.update(report)
        return 0
    if given.html is not None:
        if given.source.is_dir():
            parser.error("--html takes the raw results of a run, FILE.json")
        from . import page

        page.write(json.loads(given.source.read_text(encoding="utf-8")), given.html)
        return 0
    report = _load(given.source)
    if given.results is not None:
        store.add(report, given.results)
    elif given.markdown:
        print(text.markdown(report))
    else:
        text.show(report)
    return 0


def _load(path: Path) -> rows.Report:
    if path.is_dir():
        return store.read(path)
    return rows.from_raw(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
