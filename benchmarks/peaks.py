"""Peak memory of every case beside torch's, in bytes of torch's allocator.

    python -m pyops.benchmarks.peaks [OP ...] [--live N] [--markdown FILE]

Each op's cases run forward (without gradients, as in evaluation) and forward and backward, in their own dtype
and in bfloat16; the networks in training and in evaluation mode. Nothing is timed: a few minutes for all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pyops import backends

from . import cases
from .cases import inference
from .cases.tools.networks import NetworkCase
from .measure.case import FORWARD, FORWARD_BACKWARD, TRAINING_STEP, Case, Inputs
from .measure.contender import Contender
from .measure.contenders import build
from .measure.memory import Allocation, allocated_at_peak

#: Bytes that a call may have beyond torch's: alignment, numbers of each row or channel, and the small
#: gradient that comes into a row of layers, which autograd holds until all of them have run.
ALLOWANCE = 12 << 10
#: Known to be above by more: at most these bytes. Layer norm keeps the statistics of 16-bit rows in float32,
#: 4 bytes more for each row than torch's rounded ones. In the language model's step an output, its gradient
#: and the gradient of the sums are of one size. Ours are alive together while one product of all steps forms
#: the weights' gradients; torch's loop frees what a step has kept as it goes. Products of fewer steps would
#: add up in another order.
KNOWN = {
    "layer_norm [4096, 768] bfloat16": 24 << 10,
    "layer_norm [16384, 1024] bfloat16": 80 << 10,
    "training_step rnn [32, 35] float32": 880 << 10,
    "training_step rnn [32, 35] bfloat16": 230 << 10,
}


@dataclass(frozen=True)
class Peaks:
    """One case in one mode: what was allocated at the peak, of ours and of torch's."""

    case: str
    mode: str
    ours: list[Allocation]
    torchs: list[Allocation]

    @property
    def sums(self) -> tuple[int, int]:
        return sum(a.bytes for a in self.ours), sum(a.bytes for a in self.torchs)

    @property
    def is_above(self) -> bool:
        """Whether ours are above torch's by more than is allowed."""
        return self.excess > KNOWN.get(self.case, ALLOWANCE)

    @property
    def excess(self) -> int:
        """Bytes above torch's; negative where ours are fewer."""
        ours, torchs = self.sums
        return ours - torchs


def variants(ops: list[str], *, overhead: bool = False) -> list[tuple[Case, str]]:
    """Every case of the benchmark on the CPU, in all modes and dtypes that are compared."""
    found: dict[tuple[str, str], tuple[Case, str]] = {}
    for case in cases.select(ops, torch.device("cpu"), overhead=overhead):
        for variant, mode in _modes(case):
            for dtype in dict.fromkeys((case.dtype, torch.bfloat16)):
                made = _in_dtype(variant, dtype)
                found.setdefault((made.name, mode), (made, mode))
    return list(found.values())


def _modes(case: Case) -> Iterator[tuple[Case, str]]:
    if not isinstance(case, NetworkCase):
        yield case, FORWARD
        if FORWARD_BACKWARD in case.modes:
            yield case, FORWARD_BACKWARD
    else:
        yield case, case.modes[0]
        if case.modes[0] == TRAINING_STEP:
            yield inference.of_step(case), FORWARD


def _in_dtype(case: Case, dtype: torch.dtype) -> Case:
    if case.dtype == dtype:
        return case

    def inputs(device: torch.device) -> Inputs:
        made = case.inputs(device)
        return {name: _cast(value, case.dtype, dtype) for name, value in made.items()}

    return replace(case, dtype=dtype, inputs=case.inputs if isinstance(case, NetworkCase) else inputs)


def _cast(value: object, of: torch.dtype, to: torch.dtype) -> object:
    return value.detach().to(to) if isinstance(value, torch.Tensor) and value.dtype == of else value


def measure(case: Case, mode: str) -> Peaks:
    """Both libraries' peaks, of a call behind two others: what the first ones leave is no part of it."""
    with backends.use_backend(None), torch.set_grad_enabled(mode != FORWARD):
        contenders = {c.name: c for c in build(case, mode, torch.device("cpu"), compiled=False)}
        ours, torchs = (_at_peak(contenders[name]) for name in ("pyops cpp", "eager"))
    return Peaks(case.name, mode, ours, torchs)


def _at_peak(contender: Contender) -> list[Allocation]:
    def prepare() -> None:
        contender.before_block()
        if contender.before_call is not None:
            contender.before_call()

    for _ in range(2):  # convert looks at a first call and prepares the second
        prepare()
        contender.call()
    prepare()
    return allocated_at_peak(contender.call)


def table(rows: list[Peaks]) -> str:
    """Markdown; what is above torch's first, by bytes."""
    header = ["case", "mode", "pyops KiB", "torch KiB", "more KiB", "pyops / torch"]
    lines = [" | ".join(["", *header, ""]).strip(), "|---|---|---:|---:|---:|---:|"]
    for row in sorted(rows, key=lambda row: -max(row.excess, 0)):
        ours, torchs = row.sums
        numbers = [f"{ours / 1024:.1f}", f"{torchs / 1024:.1f}", f"{row.excess / 1024:+.1f}"]
        ratio = f"{ours / torchs:.2f}" if torchs >= 1024 else "-"
        lines.append(" | ".join(["", row.case, row.mode, *numbers, ratio, ""]).strip())
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Print each case as it is measured, then all; 1 where one is above torch's."""
    parser = argparse.ArgumentParser(prog="python -m pyops.benchmarks.peaks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ops", nargs="*", metavar="OP", help="functions to measure (default: all)")
    parser.add_argument("--overhead", action="store_true", help="the smallest cases instead")
    parser.add_argument("--live", type=int, default=0, metavar="N", help="show the N largest at the peak")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table")
    given = parser.parse_args(arguments)
    rows = []
    for case, mode in variants(given.ops, overhead=given.overhead):
        row = measure(case, mode)
        rows.append(row)
        ours, torchs = row.sums
        print(f"{row.case} {row.mode}: {ours / 1024:.1f} KiB, torch's {torchs / 1024:.1f}", flush=True)
        for name, found in (("pyops", row.ours), ("torch", row.torchs)):
            for allocation in found[: given.live]:
                print(f"  {name} {allocation.bytes / 1024:9.1f} KiB  {' < '.join(allocation.calls[:4])}")
    above = [row for row in rows if row.is_above]
    print(f"{len(above)} of {len(rows)} above torch's by more than is allowed")
    for row in above:
        print(f"  {row.case} {row.mode}: {row.excess} bytes more")
    if given.markdown is not None:
        given.markdown.write_text(table(rows), encoding="utf-8")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
