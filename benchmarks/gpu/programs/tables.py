"""Puts the times of a run's ``results.jsonl`` into the tables of ``benchmarks/results`` or another folder."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from ...measure.case import Traffic
from ...measure.ceilings import Ceilings
from ...report import store
from ...report.rows import MODES, NOT_STARTED, Raw, from_raw
from ..pool import CUT_OFF
from ..worker import PASSED
from .timing import SETTINGS

#: The sections of the tables, by those of the run.
_SECTIONS = {"results": "results", "compile": "results", "overhead": "overhead"}


def raw(path: Path) -> Raw | None:
    """The raw results of the run; None where nothing was timed."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    machine = next((row["machine"] for row in rows if "machine" in row), None)
    if machine is None:
        return None
    told = next((row["ceilings"] for row in rows if "ceilings" in row), None)
    found: Raw = {
        "machine": machine,
        "settings": asdict(SETTINGS["results"]),
        "ceilings": told,
        "results": [],
        "overhead": [],
        "default_allocator": [],
        "failures": [],
    }
    limits = Ceilings(told["copy"], told["read"], told["gemm"]) if told else None
    for row in rows:
        if "result" in row:
            result = row["result"]
            if limits is not None and row["section"] != "overhead":
                traffic = Traffic(result["bytes_read"], result["bytes_written"], result["flops"])
                result["floor_seconds"] = limits.floor_seconds(traffic, getattr(torch, result["dtype"]))
            found[_SECTIONS[row["section"]]].append(result)
        elif row["step"] == "benchmarks" and row["outcome"] != PASSED:
            found["failures"] += _failure(row)
    return found


def _failure(row: Raw) -> list[Raw]:
    """What the tables hold of a case that was not timed; nothing of a row that is of no case."""
    item, message = row.get("item", ""), " ".join((row.get("message") or "").split())[:300]
    kind = NOT_STARTED if row["outcome"] == CUT_OFF else row["outcome"]
    return [
        {
            "case": item.removesuffix(f" {mode}"),
            "mode": mode,
            "section": "results",
            "kind": kind,
            "message": message,
        }
        for mode in MODES
        if item.endswith(f" {mode}")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="results.jsonl")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="folder of the tables")
    given = parser.parse_args()
    found = raw(given.path)
    if found is None:
        print("nothing was timed")
        return
    store.add(from_raw(found), given.results)


if __name__ == "__main__":
    main()
