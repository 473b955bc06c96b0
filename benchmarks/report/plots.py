"""The pictures of a report's page, as PNG, in the colours of a light and of a dark page."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .rows import BESIDE, COMPILE, EAGER, FIRST_STEP, OVERHEAD, TIME, Raw, Report, Row
from .tables import DEFAULT, KEPT_BESIDE, Group, geometric_mean, grouped, share_kept


@dataclass(frozen=True)
class Colors:
    """Of one way to show the page."""

    back: str
    ink: str
    faint: str
    win: str
    loss: str
    pyops: str
    torch: str


LIGHT = Colors("#ffffff", "#1f2430", "#c9ced8", "#1a7f5a", "#c4362b", "#1f6feb", "#e07b16")
DARK = Colors("#12161d", "#e3e7ee", "#3b4350", "#3fbf8f", "#ff7b6e", "#6cb0ff", "#ffab57")


#: Panels of a picture in a row.
_COLUMNS = 4
#: Where bars of memory end: some cases need next to none.
_LEAST_RATIO = 1 / 16


@dataclass(frozen=True)
class Plot:
    """A picture: its title, what to see in it, and how to draw it."""

    title: str
    words: str
    #: Width and height in inches.
    size: tuple[float, float]
    draw: Callable[..., None]
    #: Names of several panels; ``draw`` then gets a list of axes, otherwise the axes alone.
    panels: Sequence[str] = ()

    def png(self, colors: Colors) -> bytes:
        """The picture in ``colors``; drawn on a Figure object, without matplotlib's global state."""
        figure = Figure(figsize=self.size, dpi=110, layout="constrained", facecolor=colors.back)
        columns = min(_COLUMNS, len(self.panels)) or 1
        grid = figure.subplots(math.ceil(len(self.panels) / columns) or 1, columns, squeeze=False)
        every = [*grid.flat]
        for axes in every:
            axes.set_facecolor(colors.back)
            axes.tick_params(colors=colors.ink)
            axes.spines[["top", "right"]].set_visible(False)
            for spine in axes.spines.values():
                spine.set_color(colors.faint)
        for axes in every[max(1, len(self.panels)) :]:
            axes.set_visible(False)
        self.draw(every if self.panels else every[0], colors)
        for axes, name in zip(every, self.panels, strict=False):
            axes.set_title(name, color=colors.ink, fontsize=10)
        for label in (label for axes in every for label in (axes.xaxis.label, axes.yaxis.label)):
            label.set_color(colors.ink)
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return out.getvalue()


def plots(report: Report, raw: Raw) -> list[Plot]:
    """All pictures of one run; those without data are left out."""
    made = [speedups(report), _roofline(raw), _sizes(raw), _memory(report), _overhead(report)]
    return [plot for plot in (*made, _beside(report), _first_step(report)) if plot is not None]


def speedups(report: Report) -> Plot | None:
    """A bar for the geometric mean of each op, a dot for each case."""
    found: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.section == TIME and row.speedup:
            found.setdefault(row.op.replace("_", " "), []).append(row)
    if not found:
        return None
    means = {op: geometric_mean([row.speedup or 1 for row in rows]) for op, rows in found.items()}
    order = sorted(found, key=lambda op: means[op])

    def draw(axes: Axes, colors: Colors) -> None:
        for place, op in enumerate(order):
            values = [row.speedup or 1 for row in found[op]]
            color = colors.win if means[op] >= 1 else colors.loss
            axes.barh(place, means[op] - 1, left=1, color=color, height=0.66, alpha=0.45)
            dots = [colors.win if value >= 0.995 else colors.loss for value in values]
            axes.scatter(values, [place] * len(values), c=dots, s=14, zorder=3)
            axes.text(0.995, place, f"{means[op]:.2f}x ", transform=axes.get_yaxis_transform(), ha="right",
                      va="center", color=colors.ink, fontsize=9)  # fmt: skip
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(-0.7, len(order) - 0.3)
        _factors(axes, [row.speedup or 1 for rows in found.values() for row in rows], colors)
        axes.set_xlabel("speed of pyops over the fastest way of torch")

    return Plot(
        "Speed beside torch",
        "A dot is a case, a bar the geometric mean of an op. To the right of 1 pyops is faster than the "
        "fastest of torch eager, channels_last and torch.compile, as far as they were measured.",
        (8.6, 1.1 + 0.27 * len(order)),
        draw,
    )


def _roofline(raw: Raw) -> Plot | None:
    """What each case reaches of the machine's bandwidth and float32 products."""
    ceilings = raw["ceilings"]
    found = [
        (
            result["flops"] / moved,
            {name: result["flops"] / spread["median"] for name, spread in seconds.items()},
        )
        for result in raw["results"]
        if (moved := result["bytes_read"] + result["bytes_written"])
        and result["flops"]
        and result["dtype"] == "float32"
        and (seconds := result["seconds"])
    ]
    if not found or not ceilings or "float32" not in ceilings.get("gemm", {}):
        return None
    top, bandwidth = ceilings["gemm"]["float32"], ceilings["copy"]

    def draw(axes: Axes, colors: Colors) -> None:
        for intensity, rates in found:
            ours = max(rate for name, rate in rates.items() if name.startswith("pyops"))
            theirs = max(rate for name, rate in rates.items() if not name.startswith("pyops"))
            axes.plot([intensity] * 2, [theirs / 1e9, ours / 1e9], color=colors.faint, lw=1, zorder=1)
            axes.scatter(intensity, theirs / 1e9, color=colors.torch, s=16, zorder=2, marker="s")
            axes.scatter(intensity, ours / 1e9, color=colors.pyops, s=20, zorder=3)
        low, high = min(x for x, _ in found) / 1.5, max(x for x, _ in found) * 1.5
        edge = top / bandwidth
        axes.plot([low, edge, max(high, 2 * edge)], [low * bandwidth / 1e9, top / 1e9, top / 1e9],
                  color=colors.ink, lw=1.5)  # fmt: skip
        axes.scatter([], [], color=colors.pyops, label="pyops")
        axes.scatter([], [], color=colors.torch, marker="s", label="torch, fastest")
        axes.plot([], [], color=colors.ink, label="measured copy bandwidth and GEMM rate")
        axes.legend(frameon=False, labelcolor=colors.ink, loc="lower right")
        _logarithmic(axes, "FLOPs per byte that the mathematics needs", "GFLOP/s", colors)

    return Plot(
        "Roofline, float32",
        "How close a case comes to what the machine can do. Above the slanted line the data stays in the "
        "caches; above the flat one an algorithm, such as Winograd's, needs fewer FLOPs than the formula.",
        (8.6, 5.2),
        draw,
    )


def _sizes(raw: Raw) -> Plot | None:
    """Time of a call as its input grows."""
    found: dict[str, list[Raw]] = {}
    for result in raw.get("sizes", []):
        found.setdefault(result["op"], []).append(result)
    if not found:
        return None

    def draw(panels: Sequence[Axes], colors: Colors) -> None:
        for axes, results in zip(panels, found.values(), strict=False):
            sizes = [result["elements"] for result in results]
            for way, color in ((DEFAULT, colors.pyops), (EAGER, colors.torch)):
                times = [result["seconds"][way]["median"] * 1e6 for result in results]
                axes.plot(sizes, times, color=color, marker="o", ms=3, label=way.removesuffix(" default"))
            axes.set_xscale("log", base=4)
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: _short(value))
            axes.grid(color=colors.faint, alpha=0.4)
            axes.set_xlabel("elements")
        panels[0].set_ylabel("microseconds")
        panels[0].legend(frameon=False, labelcolor=colors.ink)

    return Plot(
        "Time against size",
        "Forward and backward in float32, as users call it: on small tensors a single op may be torch's own, "
        "where that was measured to be faster.",
        (8.6, 2.6 * math.ceil(len(found) / _COLUMNS)),
        draw,
        panels=[op.replace("_", " ") for op in found],
    )


def _short(elements: float) -> str:
    """A number of elements in units of 1024."""
    return f"{elements / 2**20:g}M" if elements >= 2**20 else f"{elements / 2**10:g}K"


def _memory(report: Report) -> Plot | None:
    """Peak memory of pyops over that of eager."""
    pairs = [
        (row.name, row.peak_bytes / eager.peak_bytes)
        for group in grouped(report, TIME)
        for row in group.subjects.values()
        if (eager := group.measured.get(EAGER)) and row.peak_bytes and eager.peak_bytes
    ]
    if not pairs:
        return None
    ratios = sorted(ratio for _, ratio in pairs)

    def draw(axes: Axes, colors: Colors) -> None:
        dots = [colors.win if ratio <= 1 else colors.loss for ratio in ratios]
        shown = [max(ratio, _LEAST_RATIO) for ratio in ratios]
        axes.bar(range(len(shown)), [ratio - 1 for ratio in shown], bottom=1, color=dots, width=0.8)
        axes.axhline(1, color=colors.ink, lw=1)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xticks([])
        axes.set_xlabel("cases, in order")
        axes.set_ylabel("peak memory of pyops over eager's")
        axes.grid(color=colors.faint, alpha=0.4, axis="y")

    return Plot(
        "Memory",
        f"Peak memory during one call. Below 1 pyops needs less than torch eager: in "
        f"{sum(ratio <= 1 for ratio in ratios)} of {len(ratios)} cases, geometric mean "
        f"{geometric_mean(ratios):.2f}.",
        (8.6, 3.2),
        draw,
    )


def _overhead(report: Report) -> Plot | None:
    found = [
        (f"{group.name.split(' [')[0]}{' + grad' if group.rows[0].mode != 'forward' else ''}", group)
        for group in grouped(report, OVERHEAD)
        if DEFAULT in group.measured and EAGER in group.measured
    ]
    return _pairs(
        "Microseconds per call",
        "One call at the smallest size, where nearly all is overhead.",
        [(name, {"pyops": g.measured[DEFAULT], "eager": g.measured[EAGER]}) for name, g in found],
        unit=1,
        label="microseconds",
    )


def _first_step(report: Report) -> Plot | None:
    found = [(group.name.removesuffix(" float32"), _ways(group)) for group in grouped(report, FIRST_STEP)]
    return _pairs(
        "Time to the first step",
        "Seconds in a fresh process, from a network of torch's layers to the end of its first training step. "
        "pyops is imported and the network converted within; torch.compile compiles.",
        found,
        unit=1e6,
        label="seconds",
    )


def _ways(group: Group) -> dict[str, Row]:
    named = {name: row for name, row in group.measured.items() if name in (EAGER, COMPILE)}
    return group.subjects | named


def _pairs(
    title: str, words: str, found: Sequence[tuple[str, dict[str, Row]]], *, unit: float, label: str
) -> Plot | None:
    """Bars side by side for a few ways to do the same."""
    if not found:
        return None
    most = max(len(ways) for _, ways in found)

    def draw(axes: Axes, colors: Colors) -> None:
        palette = (colors.pyops, colors.torch, colors.faint)
        height, named = 0.8 / most, set()
        for place, (_, ways) in enumerate(found):
            for number, (way, row) in enumerate(ways.items()):
                y = place - 0.4 + (number + 0.5) * height
                shown = None if way in named else way
                named.add(way)
                axes.barh(
                    y, (row.microseconds or 0) / unit, height * 0.92, color=palette[number % 3], label=shown
                )
        axes.set_yticks(range(len(found)), [name for name, _ in found], fontsize=8)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlabel(label)
        axes.legend(frameon=False, labelcolor=colors.ink)
        axes.grid(color=colors.faint, alpha=0.4, axis="x")

    return Plot(title, words, (8.6, 1.2 + 0.13 * most * len(found)), draw)


def _beside(report: Report) -> Plot | None:
    """Speedups alone against those beside busy processes."""
    alone = {group.case_and_mode: group.subjects for group in grouped(report, TIME)}
    pairs = [
        (before.speedup, row.speedup)
        for group in grouped(report, BESIDE)
        for name, row in group.subjects.items()
        if (before := alone.get(group.case_and_mode, {}).get(name)) and share_kept(row, before) is not None
    ]
    if not pairs:
        return None

    def draw(axes: Axes, colors: Colors) -> None:
        for x, y in pairs:
            axes.scatter(x, y, color=colors.win if y >= KEPT_BESIDE * x else colors.loss, s=16, zorder=2)
        values = [value for pair in pairs for value in pair]
        ends = [min(values) / 1.2, max(values) * 1.2]
        axes.plot(ends, ends, color=colors.ink, lw=1)
        axes.plot(ends, [KEPT_BESIDE * end for end in ends], color=colors.faint, lw=1)
        _logarithmic(axes, "speedup alone", "speedup beside busy processes", colors)

    return Plot(
        "On a shared machine",
        f"The same case while other processes keep the cores busy: on the line nothing is lost; below the "
        f"paler one more than {100 * (1 - KEPT_BESIDE):.0f} % of the speedup is.",
        (6.4, 5.2),
        draw,
    )


def _logarithmic(axes: Axes, x: str, y: str, colors: Colors) -> None:
    """Both axes logarithmic, with their labels."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=colors.faint, alpha=0.4)


def _factors(axes: Axes, values: Sequence[float], colors: Colors) -> None:
    """A logarithmic axis of factors around 1."""
    axes.set_xscale("log", base=2)
    low, high = min(0.5, *values) / 1.1, max(2.0, *values) * 2.2
    axes.set_xlim(low, high)
    ticks = [2.0**n for n in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.axvline(1, color=colors.ink, lw=1)
    axes.grid(color=colors.faint, alpha=0.4, axis="x")
