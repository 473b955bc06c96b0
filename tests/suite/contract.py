"""What an op must pass, as a table: each check with the cases it takes. ``test_contract.py`` runs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .backends import Backend
from .cases import Case

FLOAT = (torch.float32,)
BOTH = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Sweep:
    """``cases`` in each of ``dtypes`` on each of ``backends``; where None, in those of the check."""

    cases: tuple[Case, ...]
    dtypes: tuple[torch.dtype, ...] | None
    backends: tuple[Backend, ...] | None
    layouts: tuple[str, ...] | None


def over(
    cases: Iterable[Case],
    dtypes: Iterable[torch.dtype] | None = None,
    backends: Iterable[Backend] | None = None,
    layouts: Iterable[str] | None = None,
) -> tuple[Sweep, ...]:
    """One sweep; a check's sweeps are added up. ``layouts`` are for strided inputs alone."""
    chosen = (None if values is None else tuple(values) for values in (dtypes, backends, layouts))
    return (Sweep(tuple(cases), *chosen),)


#: A raw op and arguments.
Call = tuple[str, tuple[Any, ...]]


def spoiled(op: str, good: tuple[Any, ...], *changes: dict[int, Any]) -> list[Call]:
    """Calls of the raw ``op`` with its ``good`` arguments after each of ``changes``, by position."""
    return [(op, tuple(change.get(i, a) for i, a in enumerate(good))) for change in changes]


#: A public function, the error and the message that it must raise, and arguments by position and by name.
Mistake = tuple[str, type[Exception], str, tuple[Any, ...], dict[str, Any]]


def bad(function: str, *rows: tuple[Any, ...], **good: Any) -> list[Mistake]:
    """Calls that must raise. A row is the error, its message, and a tuple of the arguments by position, or a
    dictionary of those that are changed in the ``good`` ones, or both."""
    found = []
    for error, message, *arguments in rows:
        by_position = next((a for a in arguments if isinstance(a, tuple)), ())
        by_name = next((a for a in arguments if isinstance(a, dict)), {})
        found.append((function, error, message, by_position, {**good, **by_name}))
    return found


@dataclass(frozen=True)
class Contract:
    """The checks of an op by name, see ``tests/test_contract.py``.

    A check takes the ``small`` cases unless the op gives it others, or none: ``()``, with the reason why.
    """

    small: Sequence[Case]
    accuracy: tuple[Sweep, ...] | None = None
    strided_input: tuple[Sweep, ...] | None = None
    strided_upstream: tuple[Sweep, ...] | None = None
    gradcheck: tuple[Sweep, ...] | None = None
    opcheck: tuple[Sweep, ...] | None = None
    no_host_sync: tuple[Sweep, ...] | None = None
    compile: tuple[Sweep, ...] | None = None
    same_bits: tuple[Sweep, ...] | None = None
    autocast: tuple[Sweep, ...] | None = None
    meta: tuple[Sweep, ...] | None = None
    raw_op_refuses: Sequence[Call] = ()
    #: What messages of the raw ops match, if not the name of the op that was called.
    raw_ops: str | None = None
    bad_arguments: Sequence[Mistake] = ()

    def sweeps(self, check: str) -> tuple[Sweep, ...]:
        chosen = getattr(self, check)
        return over(self.small) if chosen is None else chosen
