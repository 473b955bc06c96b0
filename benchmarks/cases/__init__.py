"""The cases: one file per op.

An op is added by adding one file ``cases/<op>.py`` that assigns ``CASES``, a list of
:class:`~pyops.benchmarks.measure.case.Case`; nothing else is edited. What several ops share is in ``tools``.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from ..measure.case import Case


def discover() -> list[Case]:
    """All cases of all op files, in file-name order."""
    cases: list[Case] = []
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        cases.extend(importlib.import_module(f"{__package__}.{path.stem}").CASES)
    names = [case.name for case in cases]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"benchmarks: case names must be unique, given twice: {duplicates}")
    return cases


def select(
    ops: list[str],
    device: torch.device,
    *,
    quick: bool = False,
    overhead: bool = False,
    sweeps: bool = False,
) -> list[Case]:
    """The cases of ``ops`` (all when empty) that run on ``device``: those of the main table, those of the
    smallest size (``overhead``), or those of the ``sweeps`` over sizes.

    Raises:
        ValueError: an op that has no benchmark file.
    """
    cases = discover()
    known = sorted({case.op for case in cases})
    unknown = [op for op in ops if op not in known]
    if unknown:
        raise ValueError(f"bench: op must be one of {', '.join(known)}, got {', '.join(unknown)}")
    return [
        case
        for case in cases
        if (not ops or case.op in ops)
        and device.type in case.devices
        and case.overhead == overhead
        and (case.elements is not None) == sweeps
        and (case.quick or overhead or sweeps or not quick)
    ]
