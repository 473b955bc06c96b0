"""``python -m tests.gpu.raw_ops OP``: the CUDA kernels of a file of the suite, for compute-sanitizer.

Every raw op with valid arguments, and the small cases forward and backward. Results are not compared here.
"""

from __future__ import annotations

import functools
import sys

import torch
from pyops.benchmarks.gpu import worker
from pyops.benchmarks.measure.device import DryRun, Gpu, opened
from torch import Tensor

import pyops
from tests.suite import checks, ops
from tests.suite.backends import BACKENDS, Backend, has_kernel, raw
from tests.suite.cases import Case

Device = Gpu | DryRun


def call(backend: Backend, op: str, arguments: tuple, device: Device) -> None:
    tensors = {str(i): a for i, a in enumerate(arguments) if isinstance(a, Tensor)}
    moved = checks.on_device(tensors, backend.device)
    raw(backend, op)(*[moved.get(str(i), a) for i, a in enumerate(arguments)])
    device.synchronize()


def run(backend: Backend, case: Case, dtype: torch.dtype, device: Device) -> None:
    with pyops.use_backend(backend.name):
        checks.run(checks.OPS[case.op].pyops, case, checks.on_device(case.tensors(dtype), backend.device))
    device.synchronize()


def main() -> int:
    parser = worker.parser(__doc__)
    parser.add_argument("op", help="a file of tests/suite/ops")
    given = parser.parse_args()
    device = opened(given.device)
    called = device.backend("cuda")
    backend = next(b for b in BACKENDS if b.name == called)
    module = next(m for m in ops.MODULES if m.__name__.rpartition(".")[2] == given.op)
    valid = module.valid_arguments() if hasattr(module, "valid_arguments") else {}
    items: dict[str, worker.Item] = {
        op: functools.partial(call, backend, op, arguments, device)
        for op, arguments in valid.items()
        if has_kernel(backend, op)
    }
    small = module.CONTRACT.small if hasattr(module, "CONTRACT") else []
    for dtype in (torch.float32, torch.bfloat16):
        for case in small[: 1 if device.stand_in else None]:
            items[f"{case} {dtype}"] = functools.partial(run, backend, case, dtype, device)
    return worker.work(items, device, given)


if __name__ == "__main__":
    sys.exit(main())
