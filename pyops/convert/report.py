"""What was done to a model: :func:`conversion_report`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from html import escape
from operator import add

from torch.nn import Module

from .swap import TO_TORCH, Conversion, Cost, computing_type, conversion_of, why_left


@dataclass(frozen=True)
class Entry:
    """One line of the report."""

    #: Name of the module in the model; empty for the model itself.
    name: str
    #: Its class.
    module: str
    #: ``"replaced"``, ``"fused"``, ``"fused anew"``, ``"kept torch"``, ``"not fused"``, ``"not traced"`` or
    #: ``"left"``.
    action: str
    #: What replaced it, what was fused, or why not.
    detail: str
    #: What the layer, or the step that begins with it, takes in a step of the model, where that was measured.
    cost: Cost | None = None


_COLUMNS = ("module", "class", "what", "how or why")
_COST_COLUMNS = ("GFLOP", "MB", "ms", "saved ms")
_ACTIONS = ("replaced", "fused", "fused anew", "kept torch", "not fused", "not traced", "left")


class Report(list[Entry]):
    """A list of entries that prints as a table, a coloured one with rich and in notebooks."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The titles; those of costs where something was measured."""
        return (*_COLUMNS[:3], *_COST_COLUMNS, _COLUMNS[3]) if self._total else _COLUMNS

    def rows(self) -> list[tuple[str, ...]]:
        measured = self._total is not None
        return [
            (e.name or ".", e.module, e.action, *(_cells(e.cost) if measured else ()), e.detail) for e in self
        ]

    @property
    def _total(self) -> Cost | None:
        costs = [entry.cost for entry in self if entry.cost is not None]
        return reduce(add, costs) if costs else None

    def summary(self) -> str:
        """How many there are of each action, and what all measured parts take."""
        counts = {action: sum(entry.action == action for entry in self) for action in _ACTIONS}
        text = ", ".join(f"{n} {action}" for action, n in counts.items() if n) or "nothing was converted"
        total = self._total
        if total is None:
            return text
        before, now = f"{1e3 * total.before:.3g}", f"{1e3 * total.now:.3g}"
        return f"{text}; the measured parts take {now} instead of {before} ms in a step"

    def __str__(self) -> str:
        rows = [self.columns, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
        lines = ["  ".join((*map(_justified, row, widths, range(9)), row[-1])) for row in rows]
        rule = "-" * max(map(len, lines))
        return "\n".join((lines[0], rule, *lines[1:], rule, self.summary()))

    def __rich__(self) -> object:
        from rich.table import Table
        from rich.text import Text

        table = Table(caption=self.summary())
        for title in self.columns:
            table.add_column(title, justify="right" if title in _COST_COLUMNS else "left")
        for row in self.rows():
            name, kind, action, *rest = row
            table.add_row(Text(name), Text(kind), f"[{_STYLES[action]}]{action}[/]", *map(Text, rest))
        return table

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        lines = [f"<tr>{_cells_of('th', self.columns)}</tr>"]
        for row in self.rows():
            colour = _COLOURS[row[2]]
            lines.append(f'<tr style="color: {colour}">{_cells_of("td", row)}</tr>')
        table = "".join(lines)
        return f"<table><caption>{escape(self.summary())}</caption>{table}</table>"


def _cells(cost: Cost | None) -> tuple[str, ...]:
    """The numbers of one row, under :data:`_COST_COLUMNS`."""
    if cost is None:
        return ("",) * len(_COST_COLUMNS)
    times = (1e3 * cost.now, 1e3 * (cost.before - cost.now))
    return (f"{cost.flops / 1e9:.3f}", f"{cost.bytes / 1e6:.2f}", *(f"{ms:.3f}" for ms in times))


def _justified(text: str, width: int, place: int) -> str:
    """Numbers, behind the first three columns, to the right."""
    return text.ljust(width) if place < 3 else text.rjust(width)


def _cells_of(tag: str, row: Sequence[str]) -> str:
    return "".join(f'<{tag} style="text-align: left">{escape(text)}</{tag}>' for text in row)


_STYLES = dict(
    zip(_ACTIONS, ("green", "bold green", "green", "cyan", "yellow", "yellow", "dim"), strict=True)
)
_COLOURS = dict(
    zip(_ACTIONS, ("green", "darkgreen", "green", "teal", "#b58900", "#b58900", "gray"), strict=True)
)


def conversion_report(model: Module) -> Report:
    """What :func:`pyops.convert` has replaced, fused and left in ``model``, and why.

    After a conversion with ``example_inputs`` it also says what each layer, or fused step that begins with
    it, takes in a step of the model: operations of its products (as ``torch.utils.flop_counter`` counts),
    bytes read and written at least, milliseconds, and how many were saved.

    Returns:
        A list of :class:`Entry`, in the order of ``model.named_modules()``; ``str()`` and ``rich.print`` make
        a table of it.

    Raises:
        TypeError: ``model`` is no ``torch.nn.Module``.
    """
    if not isinstance(model, Module):
        raise TypeError(f"conversion_report: model must be a torch.nn.Module, got {type(model).__name__}")
    report = Report()
    for name, module in model.named_modules():
        conversion = conversion_of(module)
        cost = None if conversion is None else conversion.cost
        for i, (action, detail) in enumerate(_lines(module)):
            report.append(Entry(name, type(module).__name__, action, detail, None if i else cost))
    return report


def _lines(module: Module) -> Iterator[tuple[str, str]]:
    """Actions and details of one module."""
    conversion = conversion_of(module)
    kind = computing_type(module)
    if conversion is not None and conversion.kept is not None:
        yield "kept torch", conversion.kept
    elif conversion is not None and conversion.swapped and kind in TO_TORCH:
        yield "replaced", f"torch.nn.{kind.__name__} by pyops.nn.{kind.__name__}"
    reason = why_left(module)
    if reason is not None:
        yield "left", reason
    if conversion is None:
        return
    if conversion.not_traced is not None:
        yield "not traced", f"{conversion.not_traced}: layer by layer"
    for group, obstacle in _groups(module, conversion).items():
        yield ("fused", group) if obstacle is None else ("not fused", f"{group}: {obstacle}")
    for change in conversion.changes:
        yield "fused anew", f"because {change}"
    for reason in conversion.not_fused:
        yield "not fused", reason


def _groups(module: Module, conversion: Conversion) -> dict[str, str | None]:
    """What is fused in any mode, each once, and what keeps it from being used now.

    Plans of before a change count where there are no others.
    """
    obstacles = [(plan, plan.obstacle(module)) for plan in conversion.plans]
    if any(obstacle is None for _, obstacle in obstacles):
        obstacles = [(plan, None) for plan, obstacle in obstacles if obstacle is None]
    return {group: obstacle for plan, obstacle in obstacles for group in plan.groups}
