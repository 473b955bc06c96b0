"""``python -m tests.suite.smoke [BACKEND]``: a few seconds' check of every op, for processes made to order.

test_isa_variants.py runs it with each instruction-set variant, test_mutation.py with broken libraries. It
runs cases of the suite through the checks of the suite, prints what fails and then exits with 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch

import pyops

from . import checks, ops
from .backends import BACKENDS, Backend, activate


def all_checks(backend: Backend, first: str = "") -> Iterator[tuple[str, Callable[[], None]]]:
    for module in sorted(ops.MODULES, key=lambda module: module.__name__ != first):
        for case in getattr(module, "SMOKE", ()):
            for dtype in (torch.float32, torch.bfloat16):
                yield f"{case}_{dtype}", lambda c=case, d=dtype: checks.check_accuracy(c, backend, d)
        for name, check in getattr(module, "SMOKE_CHECKS", {}).items():
            yield name, lambda check=check: check(backend)


def failures(backend: Backend, at_most: int | None = None, first: str = "") -> list[str]:
    """Names of the checks that fail, or of ``at_most`` of them; those of the module ``first`` come first."""
    activate(backend)
    torch.set_num_threads(1)  # others run beside this process
    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is NaN
    torch.backends.cudnn.allow_tf32 = False  # as in conftest.py
    failed = []
    with pyops.use_backend(backend.name):
        for name, check in all_checks(backend, first):
            torch.manual_seed(0)
            try:
                check()
            except (AssertionError, RuntimeError):
                failed.append(name)
            if len(failed) == at_most:
                break
    return failed


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else "cpp"
    failed = failures(next(b for b in BACKENDS if str(b) == wanted))
    print("\n".join(failed))
    sys.exit(bool(failed))
