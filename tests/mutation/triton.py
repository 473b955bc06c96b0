"""Mistakes in the Triton kernels: those that ops' modules name, and one for lines drawn by ``rules``.

Each is made in a copy of the kernels, which a forked process runs in Triton's interpreter.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.suite.mutants import TritonMutant
from tests.suite.ops import MODULES
from tests.suite.processes import ROOT, run_python

from . import rules
from .cpp import FILLED

NAMED: dict[str, TritonMutant] = {
    name: mutant for module in MODULES for name, mutant in getattr(module, "TRITON_MUTANTS", {}).items()
}

#: By folder or file of the kernels, the modules of the suite whose cases run them.
RUN_BY: dict[str, tuple[str, ...]] = {
    "activation": ("activation",),
    "batch_norm": ("batch_norm",),
    "classes/cross_entropy": ("cross_entropy",),
    "classes/cross_entropy_rows": ("cross_entropy",),
    "classes/nll_loss": ("nll_loss",),
    "classes/online_softmax": ("softmax", "cross_entropy"),
    "classes/rows": ("softmax", "cross_entropy"),
    "classes/softmax": ("softmax",),
    "conv2d": ("conv2d",),
    "conv2d/conv2d_max_pool2d": ("conv2d_max_pool2d",),
    "conv2d/pool": ("conv2d_max_pool2d",),
    "conv2d/pool_gradient": ("conv2d_max_pool2d",),
    "conv2d/pool_windows": ("conv2d_max_pool2d",),
    "dropout": ("dropout",),
    "embedding": ("embedding",),
    "interpolate": ("interpolate",),
    "layer_norm": ("layer_norm",),
    "linear": ("linear",),
    "loss": ("loss",),
    "pooling/avg_pool2d": ("avg_pool2d",),
    "pooling/max_pool2d": ("max_pool2d",),
    "pooling/windows": ("avg_pool2d", "max_pool2d"),
    "prelu": ("prelu",),
    "recurrent": ("recurrent",),
    "tools/activation": ("activation",),
    "tools/philox": ("dropout",),
}

# Forks one child per mutant, given as a folder and the cases by their ids; one that a signal ends, or that
# raises anything, has noticed. Prints the folder and what noticed first.
_JUDGE = """
import json, os, signal, sys
import torch
import torch.fx.experimental.symbolic_shapes
import pyops
from tests.mutation.triton import quick_cases
from tests.suite import checks
from tests.suite.backends import BACKENDS, activate
torch.backends.cudnn.allow_tf32 = False  # as in conftest.py
torch.set_num_threads(1)
backend = next(b for b in BACKENDS if b.name == "triton")
cases = quick_cases()
for line in sys.stdin:
    folder, names = json.loads(line)
    sys.stdout.flush()
    if os.fork() == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.setitimer(signal.ITIMER_PROF, 120)  # processor time: a loop without end is noticed as well
        pyops.__path__.insert(0, folder)
        activate(backend)
        with pyops.use_backend("triton"):
            for name in names:
                try:
                    checks.check_accuracy(cases[name], backend, torch.float32)
                except Exception as error:
                    print(json.dumps([folder, name]), flush=True)
                    os._exit(0)
        print(json.dumps([folder, None]), flush=True)
        os._exit(0)
    status = os.wait()[1]
    if os.waitstatus_to_exitcode(status) != 0:
        print(json.dumps([folder, f"ended by {os.waitstatus_to_exitcode(status)}"]), flush=True)
"""

# The suite's tests on the kernels in a folder, up to the first that fails.
_TESTS = """
import sys
import pyops
pyops.__path__.insert(0, sys.argv[1])
import pytest
options = ["-q", "-x", "-p", "no:cacheprovider", *sys.argv[2:]]
sys.exit(pytest.main([*options, "tests/test_contract.py", "tests/ops"]))
"""


def quick_cases() -> dict:
    """The cases that are small enough for the interpreter, by id."""
    found = {}
    for module in MODULES:
        for case in _cases(module):
            found.setdefault(case.id, case)
    return found


def _cases(module: object) -> list:
    contract = getattr(module, "CONTRACT", None)
    accuracy = [c for s in contract.sweeps("accuracy") for c in s.cases] if contract else []
    small = [*(contract.small if contract else ()), *(c for c in accuracy if c.quick)]
    return [*getattr(module, "TINY", ()), *small]


def _run_by(file: str) -> tuple[str, ...]:
    stem = file.removesuffix(".py")
    return RUN_BY.get(stem) or RUN_BY.get(stem.split("/")[0], ())


def cases_of(file: str) -> list[str]:
    """Ids of the cases that run the kernels of ``file``, of several modules in turn."""
    modules = [m for m in MODULES if m.__name__.rpartition(".")[2] in _run_by(file)]
    return [case.id for module in modules for case in _cases(module)]


def drawn(each: int = 4) -> dict[str, TritonMutant]:
    """At most ``each`` mutants of every file of kernels, the same every time."""
    found = {}
    for path in sorted((ROOT / "triton_kernels").rglob("*.py")):
        file = str(path.relative_to(ROOT / "triton_kernels"))
        if cases_of(file):
            found.update(rules.mutants(file, path.read_text(), each))
    return found


def noticed_by_tests(folder: Path, mutant: TritonMutant) -> str | None:
    """The first of the suite's tests of these kernels that fails with ``mutant``: minutes."""
    copy = folder / "tested" / "triton_kernels"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "triton_kernels", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / mutant.file).write_text(mutant.changed())
    wanted = f"triton and ({' or '.join(_run_by(mutant.file))})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TESTS, str(copy.parent), "-k", wanted],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1", **FILLED},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0:
        return None
    return failed[1] if failed else f"ended by {done.returncode}"


def caught(folder: Path, mutants: dict[str, TritonMutant]) -> dict[str, str | None]:
    """By mutant, what noticed it: a case, or a signal; None where nothing did.

    Raises:
        AssertionError: a case fails with the original kernels.
    """
    tasks = {"original": (None, sorted({case for m in mutants.values() for case in _cases_for(m)}))}
    tasks |= {name: (mutant, _cases_for(mutant)) for name, mutant in mutants.items()}
    lines = []
    for number, (mutant, cases) in enumerate(tasks.values()):
        copy = folder / str(number) / "triton_kernels"
        shutil.copytree(ROOT / "triton_kernels", copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            (copy / mutant.file).write_text(mutant.changed())
        lines.append(json.dumps([str(copy.parent), cases]))
    environment = {"PYOPS_BACKEND": None, "TRITON_INTERPRET": "1", **FILLED}
    output = run_python(
        "-W", "ignore", "-c", _JUDGE, environment=environment, timeout=6 * 3600, input="\n".join(lines)
    ).stdout
    found = dict(json.loads(line) for line in output.splitlines() if line.startswith("["))
    verdicts = {name: found[str(folder / str(number))] for number, name in enumerate(tasks)}
    assert verdicts.pop("original") is None, "the original fails"
    return verdicts


def _cases_for(mutant: TritonMutant) -> list[str]:
    return [mutant.case] if mutant.case else cases_of(mutant.file)
