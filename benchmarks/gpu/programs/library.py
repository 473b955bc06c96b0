"""Whether a kernel of each compiled library runs."""

from __future__ import annotations

import sys

import torch

import pyops
from pyops import functional as F

from ...measure.device import DryRun, Gpu, opened
from .. import worker


def _runs(backend: str, device: torch.device) -> None:
    x = torch.linspace(-2, 2, 2000, device=device)
    with pyops.use_backend(backend):
        torch.testing.assert_close(F.softplus(x), torch.nn.functional.softplus(x))


def main() -> int:
    given = worker.parser(__doc__).parse_args()
    device: Gpu | DryRun = opened(given.device)
    items = {
        "cpp": lambda: _runs("cpp", torch.device("cpu")),
        "cuda": lambda: _runs(device.backend("cuda"), device.device),
    }
    return worker.work(items, device, given)


if __name__ == "__main__":
    sys.exit(main())
