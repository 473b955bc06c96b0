"""pytest-benchmark view of the cases: ``pytest benchmarks/bench_ops.py --benchmark-only``.

Handy for comparing two commits (``--benchmark-autosave``, ``--benchmark-compare``) and for one case
(``-k "cross_entropy and 4096"``). The numbers that get published come from
:mod:`pyops.benchmarks.run`: there, contenders alternate within a round, here each runs on its own.
torch.compile is left to that harness as well: compiling would take most of the time here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyops.benchmarks import cases
from pyops.benchmarks.measure import contenders, harness
from pyops.benchmarks.measure.case import Case

from pyops import backends

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _parameters() -> list[Any]:
    parameters = []
    for case in (*cases.select([], DEVICE), *cases.select([], DEVICE, overhead=True)):
        for mode in case.modes:
            names = [f"pyops {name}" for name in contenders.kernel_backends(DEVICE)]
            names += ["eager", *case.baselines, *(["channels_last"] if case.channels_last else [])]
            parameters += [pytest.param(case, mode, name, id=f"{case.name}-{mode}-{name}") for name in names]
    return parameters


@pytest.mark.parametrize(("case", "mode", "name"), _parameters())
def test_op(benchmark: Any, case: Case, mode: str, name: str) -> None:
    benchmark.group = f"{case.name} {mode}"
    with backends.use_backend(None):
        everyone = contenders.build(case, mode, DEVICE, compiled=False)
        harness.check(case, mode, everyone, harness.Result(case.name, case.op, mode, "", "", ""))
        chosen = next((c for c in everyone if c.name == name), None)
        if chosen is None:
            pytest.skip(f"{name} does not support this case")
        chosen.before_block()
        run = chosen.call
        if DEVICE.type == "cuda":

            def run() -> None:
                chosen.call()
                torch.cuda.synchronize(DEVICE)

        if chosen.before_call is None:
            benchmark(run)
        else:
            benchmark.pedantic(run, setup=chosen.before_call, rounds=11, warmup_rounds=2)
