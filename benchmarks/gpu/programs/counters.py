"""One call of a case of each file given, forward and backward by CUDA C++, for a profiler to count.

The profiler is told to wait (``--profile-from-start off``) and sees the kernels of that call alone.
"""

from __future__ import annotations

import functools
import sys

from pyops import backends

from ...measure.case import Case
from ...measure.contenders import build
from ...measure.device import DryRun, Gpu, opened
from .. import worker
from ..filling import cases_of, filling


def smallest(file: str, device: Gpu | DryRun) -> tuple[Case, str]:
    """The case that fills the GPU with the least, since a profiler runs each kernel several times."""
    if device.stand_in:
        case = next(c for c in cases_of(file) if c.overhead)
        return case, case.modes[-1]
    return min(filling(file), key=lambda pair: pair[0].traffic(pair[1]).total)


def count(file: str, device: Gpu | DryRun) -> dict[str, str]:
    case, mode = smallest(file, device)
    kernels = [device.backend("cuda")]
    with backends.use_backend(None):
        made = build(case, mode, device.device, compiled=False, kernels=kernels)
        subject = next(c for c in made if c.subject and c.name == f"pyops {kernels[0]}")
        subject.run()
        with device.profiled():
            subject.run()
    device.release_memory()
    return {"case": f"{case.name} {mode}"}


def main() -> int:
    parser = worker.parser(__doc__)
    parser.add_argument("files", nargs="+", help="files of cases")
    given = parser.parse_args()
    device = opened(given.device)
    items = {file: functools.partial(count, file, device) for file in given.files}
    return worker.work(items, device, given)


if __name__ == "__main__":
    sys.exit(main())
