"""``python -m tests.gpu.smoke OP``: each function of a file of the suite, in each dtype, on both backends.

Forward and backward are compared with float64, and their bits with those on a side stream and in a graph.
"""

from __future__ import annotations

import functools
import itertools
import sys
from typing import Any

import torch
from pyops.benchmarks.gpu import worker
from pyops.benchmarks.measure.device import DryRun, Gpu, opened

import pyops
from tests.suite import checks, ops
from tests.suite.backends import BACKENDS, Backend
from tests.suite.calls import Call, smallest_case
from tests.suite.cases import DTYPES, Case

Device = Gpu | DryRun


def check(case: Case, backend: Backend, dtype: torch.dtype, device: Device) -> None:
    checks.check_accuracy(case, backend, dtype)
    call = Call(case, backend.device, dtype)
    first = call()
    with device.side_stream():
        second = call()
    device.synchronize()
    checks.assert_bit_equal(first, second, "on a side stream")
    replay = device.capture(call)
    for _ in range(2):
        found = replay()
        device.synchronize()
        checks.assert_bit_equal(first, found, "in the replay of a graph")


def run(case: Case, name: str, dtype: torch.dtype, device: Device) -> dict[str, Any] | None:
    """One item; the backend ``name`` is loaded when it is first needed."""
    called = device.backend(name)
    backend = next(b for b in BACKENDS if b.name == called and b.device == device.device.type)
    if reason := pyops.backends.missing_reason(backend.name, backend.device):
        return {"outcome": worker.FAILED, "message": reason}
    torch.manual_seed(0)
    with pyops.use_backend(backend.name):
        check(case, backend, dtype, device)
    return None


def main() -> int:
    parser = worker.parser(__doc__)
    parser.add_argument("op", help="a file of tests/suite/ops")
    given = parser.parse_args()
    device = opened(given.device)
    torch.backends.cudnn.allow_tf32 = False  # as in conftest.py
    torch.set_num_threads(1)
    module = next(m for m in ops.MODULES if m.__name__.rpartition(".")[2] == given.op)
    cases = [smallest_case(module, op) for op in getattr(module, "OPS", {})]
    dtypes = DTYPES[:1] if device.stand_in else DTYPES
    items: dict[str, worker.Item] = {}
    for name, dtype, case in itertools.product(("cuda", "triton"), dtypes, cases):
        item = f"{name} {case.op} {str(dtype).removeprefix('torch.')}"
        items[item] = functools.partial(run, case, name, dtype, device)
    return worker.work(items, device, given)


if __name__ == "__main__":
    sys.exit(main())
