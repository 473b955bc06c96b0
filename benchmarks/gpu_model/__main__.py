"""``python -m pyops.benchmarks.gpu_model OP ...``: the least time of an op's kernels on GPUs, by a model.

It runs in a checkout of the sources where the CUDA library is built: ``PYOPS_WITH_CUDA=1 make build``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from .. import cases
from ..measure.case import FORWARD, FORWARD_BACKWARD
from . import record, table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pyops.benchmarks.gpu_model", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ops", nargs="+", metavar="OP", help="as in the benchmarks, such as softmax")
    parser.add_argument("--backend", choices=("ptx", "triton"), default="ptx", help="ptx: of CUDA C++")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases with this in their names")
    parser.add_argument("--mode", metavar="MODE", help="only this one, such as forward")
    parser.add_argument("--sample", type=int, default=48, metavar="N", help="blocks of a grid to run at most")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all counts and bounds, too")
    given = parser.parse_args(arguments)
    try:
        selected = cases.select(given.ops, torch.device("cuda"))
        record.machine(given.backend)
    except (ValueError, record.Unavailable) as error:
        parser.error(str(error))
    pairs = [
        (case, mode)
        for case in selected
        for mode in case.modes
        if given.case in case.name and given.mode in (None, mode) and mode in (FORWARD, FORWARD_BACKWARD)
    ]
    if not pairs:
        parser.error("no case is left; training steps of whole networks are not modelled")
    print(f"{table.PREAMBLE}\n{table.LEGEND}")
    found, failed = [], False
    for case, mode in pairs:
        try:
            recorded = record.record(case, mode, given.backend, given.sample)
        except RuntimeError as error:  # a fault of the machine, say, in what a sample has left in memory
            failed = True
            print(f"{case.name}, {mode}\n  failed: {str(error).splitlines()[0]}\n", flush=True)
            continue
        found.append(table.as_dict(recorded))
        print("\n".join(table.lines(recorded)) + "\n", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
