"""``python -m pyops.benchmarks.gpu_model.results``: the table ``benchmarks/results/gpu-model.md``.

It runs the cases below in the model (``OP ...``: of these ops only), puts what it counts into
``benchmarks/results/gpu-model.csv`` as what is now, and renders the page from that file. ``--before`` puts it
there as what was before, ``--render`` renders alone.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from .. import cases
from ..measure.case import FORWARD_BACKWARD, Case, dtype_name
from . import record
from .gpus import GPUS
from .model import Work, bound

RESULTS = Path(__file__).resolve().parents[1] / "results"
BEFORE, NOW = "before", "now"
#: The cases, of the families that memory bounds.
CASES = (
    "relu [2048, 2048] bfloat16",
    "gelu [2048, 2048] float32",
    "gelu [2048, 2048] bfloat16",
    "selu [8192, 16384] bfloat16",
    "softplus [8192, 16384] bfloat16",
    "sigmoid [8192, 16384] bfloat16",
    "tanh [8192, 16384] bfloat16",
    "softmax [4096, 1000] float32",
    "softmax [4096, 1000] bfloat16",
    "softmax [16384, 32000] bfloat16",
    "log_softmax [4096, 1000] bfloat16",
    "cross_entropy [4096, 1000] float32",
    "cross_entropy [4096, 1000] bfloat16",
    "cross_entropy [16384, 32000] bfloat16",
    "nll_loss [4096, 1000] float32",
    "batch_norm [32, 64, 28, 28], relu float32",
    "batch_norm [32, 512, 7, 7], residual, relu float32",
    "batch_norm [32, 64, 56, 56], residual, relu bfloat16",
    "max_pool2d [32, 64, 112, 112] k3 s2 p1 float32",
    "max_pool2d [32, 64, 112, 112] k3 s2 p1, channels_last float32",
    "max_pool2d [32, 64, 112, 112] k2 float32",
    "avg_pool2d [256, 6, 28, 28] k2 float32",
    "avg_pool2d [32, 64, 112, 112] k3 s2 p1 float32",
    "adaptive_avg_pool2d [32, 512, 7, 7] o1 float32",
    "adaptive_avg_pool2d [16, 256, 56, 56] o7 float32",
    "interpolate [8, 64, 56, 56] to [112, 112] float32",
    "interpolate [8, 64, 56, 56] to [112, 112] bfloat16",
    "dropout dropout [1024, 1024] float32",
    "dropout bias+relu+dropout [256, 4096] bfloat16",
    "embedding V=50000 D=256 N=8192 bfloat16",
    "huber_loss [64, 1, 250, 250] bfloat16",
    "binary_cross_entropy_with_logits [4096, 1000] bfloat16",
    "prelu [2048, 2048] 2048 slopes float32",
)
FIELDS = (
    *("when", "commit", "case", "mode", "kernel", "launches", "registers", "occupancy", "limit"),
    *("instructions", "sectors", "conflicts", "megabytes", "floor_megabytes", "microseconds", "resource"),
)
_TITLE = """\
# Kernels in CUDA C++ that memory bounds, by the model

**From a model: no GPU measured this.** Counts are those of the PTX that nvcc makes, run on the CPU; the
bound is the least time that an H200 needs for them by its published rates ([what is and is not in
it](../../docs/inside/gpu_model.md)). `of the floor` is the time of the bytes that a case needs at the
published bandwidth, over the sum of its kernels' bounds: 100 % is as fast as memory lets anything be. A
kernel may take several times its bound, and a division that is one instruction here is a dozen in
machine code. `before` is commit {before}, `now` commit {now}.

`python -m pyops.benchmarks.gpu_model.results` makes this page.

instr/el: thread instructions per element of the case's largest tensor, of all its kernels. MB: to and
from DRAM, and the fewest that the case needs.

| case | instr/el before | now | MB before | now | fewest | us before | now | of the floor before | now |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""
_KERNELS = """
## Kernels

instr/el as above; sect/req: 32-byte sectors per access of a warp; conflicts: wavefronts of shared memory
over the fewest for the same accesses; registers of sm_80; occupancy: resident warps of those that an
H200 has room for, and what keeps more out; us: the least on an H200, and what sets it.

| case | when | kernel | instr/el | sect/req | conflicts | registers | occupancy | us |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pyops.benchmarks.gpu_model.results", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ops", nargs="*", metavar="OP", help="only the cases of these")
    parser.add_argument("--before", action="store_true", help="record as what was before")
    parser.add_argument("--render", action="store_true", help="only make the page again")
    parser.add_argument("--sample", type=int, default=24, metavar="N", help="blocks of a grid to run at most")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    given = parser.parse_args(arguments)
    table = given.results / "gpu-model.csv"
    rows = read(table)
    if not given.render:
        when = BEFORE if given.before else NOW
        for case, mode in selected(given.ops):
            found = _rows(record.record(case, mode, "ptx", given.sample), when)
            key = (when, *case_key(found[0])) if found else None
            rows = [row for row in rows if (row["when"], *case_key(row)) != key] + found
            print(f"{case.name}, {mode}: {len(found)} kernels", flush=True)
            _write(table, rows)
    (given.results / "gpu-model.md").write_text(page(read(table)), encoding="utf-8")
    return 0


def selected(ops: Sequence[str] = ()) -> list[tuple[Case, str]]:
    """The cases, each in its most complete mode."""
    names = [name for name in CASES if not ops or name.split()[0] in ops]
    known = cases.select(sorted({name.split()[0] for name in names}), torch.device("cuda"))
    by_name = {case.name: case for case in known}
    found = [by_name[name] for name in names]
    return [(case, FORWARD_BACKWARD if FORWARD_BACKWARD in case.modes else case.modes[0]) for case in found]


def _rows(recorded: record.Recorded, when: str) -> list[dict[str, str]]:
    dtype, floor = dtype_name(recorded.case.dtype), recorded.case.traffic(recorded.mode).total
    return [
        {
            "when": when,
            "commit": _commit(),
            "case": recorded.case.name,
            "mode": recorded.mode,
            **_counts(work, recorded.elements, dtype),
            "floor_megabytes": f"{floor / 1e6:.3f}",
        }
        for work in recorded.works
    ]


def _counts(work: Work, elements: int, dtype: str) -> dict[str, str]:
    requests = work.counts["load_requests"] + work.counts["store_requests"]
    sectors = work.counts["load_sectors"] + work.counts["store_sectors"]
    least = work.counts["shared_least_wavefronts"]
    threads = work.block[0] * work.block[1] * work.block[2]
    resident, limit = GPUS[0].resident_blocks(threads, work.registers, work.shared_bytes)
    h200 = bound(work, GPUS[0], dtype)
    return {
        "kernel": work.kernel,
        "launches": str(work.launches),
        "registers": str(work.registers),
        "occupancy": f"{resident * -(-threads // 32) * 32 / GPUS[0].threads:.2f}",
        "limit": limit,
        "instructions": f"{work.thread_instructions / elements:.2f}",
        "sectors": f"{sectors / requests:.1f}" if requests else "",
        "conflicts": f"{work.counts['shared_wavefronts'] / least:.2f}" if least else "",
        "megabytes": f"{work.dram_bytes / 1e6:.3f}",
        "microseconds": f"{h200.seconds * 1e6:.2f}",
        "resource": h200.resource,
    }


def _commit() -> str:
    command = ["git", "-C", str(RESULTS), "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def case_key(row: dict[str, str]) -> tuple[str, str]:
    return row["case"], row["mode"]


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (*case_key(row), row["when"])))


# ---------------------------------------------------------------------------------------------- the page


def page(rows: Sequence[dict[str, str]]) -> str:
    commits = {when: sorted({r["commit"] for r in rows if r["when"] == when}) for when in (BEFORE, NOW)}
    keys = list(dict.fromkeys(case_key(row) for row in rows))
    title = _TITLE.format(**{when: ", ".join(found) or "-" for when, found in commits.items()})
    summary = "".join(_summary(key, rows) for key in keys)
    return title + summary + _KERNELS + "".join(_kernel(row) for row in rows)


def _summary(key: tuple[str, str], rows: Sequence[dict[str, str]]) -> str:
    both = {w: [r for r in rows if case_key(r) == key and r["when"] == w] for w in (BEFORE, NOW)}

    def pair(field: str, form: str) -> list[str]:
        return [form.format(_sum(both[w], field)) if both[w] else "-" for w in (BEFORE, NOW)]

    fewest = float(next(r for found in both.values() for r in found)["floor_megabytes"])
    floor = fewest * 1e12 / GPUS[0].dram
    shares = [f"{floor / _sum(found, 'microseconds'):.0%}" if found else "-" for found in both.values()]
    cells = (
        f"{key[0]}, {key[1]}",
        *pair("instructions", "{:.1f}"),
        *pair("megabytes", "{:.2f}"),
        f"{fewest:.2f}",
        *pair("microseconds", "{:.2f}"),
        *shares,
    )
    return f"| {' | '.join(cells)} |\n"


def _sum(rows: Iterable[dict[str, str]], field: str) -> float:
    return sum(float(row[field]) for row in rows)


def _kernel(row: dict[str, str]) -> str:
    name = f"`{row['kernel']}`" + (f" x{row['launches']}" if row["launches"] != "1" else "")
    cells = (
        *(f"{row['case']}, {row['mode']}", row["when"], name, row["instructions"], row["sectors"] or "-"),
        *(row["conflicts"] or "-", row["registers"] if row["registers"] != "0" else "-"),
        f"{float(row['occupancy']):.0%} {row['limit']}",
        f"{row['microseconds']} {row['resource']}",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main())
