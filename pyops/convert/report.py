"""What was done to a model: :func:`conversion_report`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.nn import Module

from .swap import TO_TORCH, Conversion, computing_type, conversion_of, why_left


@dataclass(frozen=True)
class Entry:
    """One line of the report."""

    #: Name of the module in the model; empty for the model itself.
    name: str
    #: Its class.
    module: str
    #: ``"replaced"``, ``"fused"``, ``"not fused"``, ``"not traced"`` or ``"left"``.
    action: str
    #: What replaced it, what was fused, or why not.
    detail: str


_COLUMNS = ("module", "class", "what", "how or why")
_ACTIONS = ("replaced", "fused", "not fused", "not traced", "left")


class Report(list[Entry]):
    """A list of entries that prints as a table, a coloured one with rich."""

    def rows(self) -> list[tuple[str, str, str, str]]:
        return [(entry.name or ".", entry.module, entry.action, entry.detail) for entry in self]

    def summary(self) -> str:
        """How many there are of each action."""
        counts = {action: sum(entry.action == action for entry in self) for action in _ACTIONS}
        return ", ".join(f"{n} {action}" for action, n in counts.items() if n) or "nothing was converted"

    def __str__(self) -> str:
        rows = [_COLUMNS, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join((*map(str.ljust, row, widths), row[3])) for row in rows]
        rule = "-" * max(map(len, lines))
        return "\n".join((lines[0], rule, *lines[1:], rule, self.summary()))

    def __rich__(self) -> object:
        from rich.table import Table

        table = Table(*_COLUMNS, caption=self.summary())
        for name, kind, action, detail in self.rows():
            table.add_row(name, kind, f"[{_STYLES[action]}]{action}[/]", detail)
        return table


_STYLES = dict(zip(_ACTIONS, ("green", "bold green", "yellow", "yellow", "dim"), strict=True))


def conversion_report(model: Module) -> Report:
    """What :func:`pyops.convert` has replaced, fused and left in ``model``, and why.

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
        for action, detail in _lines(module):
            report.append(Entry(name, type(module).__name__, action, detail))
    return report


def _lines(module: Module) -> Iterator[tuple[str, str]]:
    """Actions and details of one module."""
    conversion = conversion_of(module)
    kind = computing_type(module)
    if conversion is not None and conversion.swapped and kind in TO_TORCH:
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
    for reason in conversion.not_fused:
        yield "not fused", reason


def _groups(module: Module, conversion: Conversion) -> dict[str, str | None]:
    """What is fused in any mode, each once, and what keeps it from being used now."""
    groups: dict[str, str | None] = {}
    for plan in conversion.plans:
        groups |= dict.fromkeys(plan.groups, plan.obstacle(module))
    return groups
