"""The README's table and picture of speeds, from the committed tables: no figure is written by hand."""

from __future__ import annotations

import re
from pathlib import Path

from .rows import TIME, Report, Run
from .store import FOLDER, slug
from .tables import Group, grouped, mean_speedups

README = FOLDER.parents[1] / "README.md"
PICTURE = FOLDER.parents[1] / "docs" / "pictures" / "speed.png"
_BEGIN, _END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"

#: What the table shows, in this order: an op, and how its cases begin ("" for all of them).
SHOWN = (
    ("cross_entropy", "[4096, 1000]"),
    ("cross_entropy", "[2048, 32000]"),
    ("linear_cross_entropy", "[2048, 512] x [32000, 512]"),
    ("softmax", "[4096, 1000]"),
    ("dropout", "bias+relu+dropout [256, 4096]"),
    ("gelu", "[2048, 2048]"),
    ("leaky_relu", "[2048, 2048]"),
    ("linear", "[256, 784] x [256, 784] + relu"),
    ("linear", "[2048, 1024] x [1024, 1024]"),
    ("conv2d", "[8, 64, 112, 112]"),
    ("conv2d", "[16, 3, 224, 224]"),
    ("conv2d", "[32, 96, 54, 54]"),
    ("conv2d", "[32, 128, 28, 28]"),
    ("conv2d", "[256, 6, 14, 14]"),
    ("max_pool2d", "[32, 64, 112, 112] k3"),
    ("batch_norm", "[32, 64, 112, 112], relu"),
    ("batch_norm", "[32, 256, 14, 14]"),
    ("rnn_tanh", "[35, 32, 28] -> 256"),
    ("gru", "[35, 32, 28] -> 256"),
    ("lstm", "[35, 32, 28] -> 256"),
    ("training_step", ""),
    ("inference", ""),
)


def machine(report: Report) -> Run:
    """The newest run on a CPU alone: its machine is the one that the README shows."""
    return max((run for run in report.runs if not run.gpu), key=lambda run: run.date)


def section(report: Report) -> str:
    """What stands between the marks of the README."""
    run = machine(report)
    report = report.of(run.machine)
    lines = ["| what | | pyops | torch, fastest way | speed |", "|---|---|---:|---:|---:|"]
    found = grouped(report, TIME)
    for op, beginning in SHOWN:
        fitting = [g for g in found if g.rows[0].op == op and g.rows[0].case.startswith(beginning)]
        backward = [group for group in fitting if group.mode != "fwd"]
        lines += [_line(group) for group in backward or fitting if group.subjects]
    means = "; ".join(
        f"{mean.what}, {mean.way}: **{mean.value:.2f}x** ({mean.cases} cases)"
        for mean in mean_speedups(report)
    )
    text = (
        f"{run.machine}, torch {run.torch}, huge pages on both sides. Geometric means: {means}. All figures, "
        f"and [where pyops loses](benchmarks/results/{slug(run.machine)}.md#where-we-lose):"
    )
    return "\n".join(["", text, "", *lines, "", ""])


def _line(group: Group) -> str:
    ours = max(group.subjects.values(), key=lambda row: row.speedup or 0)
    best = min(group.baselines.values(), key=lambda row: row.microseconds or 0)
    row, mode = group.rows[0], {"fwd": "forward", "fwd+bwd": "forward + backward", "step": "step"}
    cells = [f"{row.op.replace('_', ' ')} {row.case} {row.dtype}", mode[group.mode]]
    cells += [
        _time(ours.microseconds),
        f"{_time(best.microseconds)} ({best.contender})",
        f"{ours.speedup:.2f}x",
    ]
    return "| " + " | ".join(cells) + " |"


def _time(microseconds: float | None) -> str:
    value = (microseconds or 0) / 1e3
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1}f} ms"


def render(text: str, report: Report) -> str:
    """``text`` of a README with its section made again.

    Raises:
        ValueError: it lacks one of the marks.
    """
    if text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise ValueError(f"the README must have one line {_BEGIN.strip()} and one {_END.strip()}")
    pattern = re.escape(_BEGIN) + ".*" + re.escape(_END)
    return re.sub(pattern, lambda _: _BEGIN + section(report) + _END, text, flags=re.DOTALL)


def update(report: Report, readme: Path = README, picture: Path = PICTURE) -> None:
    """Write the README's section and its picture again."""
    from .plots import LIGHT, speedups

    readme.write_text(render(readme.read_text(encoding="utf-8"), report), encoding="utf-8")
    plot = speedups(report.of(machine(report).machine))
    if plot is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(plot.png(LIGHT))
