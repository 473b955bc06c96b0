"""What a plan relies on, and whether it is still so: looked at before each call.

A call of a small network takes some hundred microseconds, so that what is compared is compared in C, in a few
lists of all modules' attributes: 30 ns each.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from operator import contains, getitem
from types import ModuleType
from typing import Any

import torch
from torch.nn import Module
from torch.nn.modules.module import _has_any_global_hook

from .frames import Namespace, variables_of
from .surroundings import Read
from .swap import OWN_FORWARD
from .trace import Trace, hooks_of

_MISSING = object()
#: How an obstacle ends that does not go away by itself.
CONVERT_AGAIN = ": convert again"
_OWN_FORWARD = f"a forward, or another method, was put on a module{CONVERT_AGAIN}"
#: Values whose comparison torch.compile can follow. Of functions and classes it sees changes by itself.
_SIMPLE = (type(None), bool, int, float, complex, str)


class Guards:
    """The guards of a plan. ``replaced`` are the modules besides the owner that are not called as such.

    The owner is given at each check: a cycle would keep it in memory until garbage is collected.
    """

    def __init__(self, traced: Trace, reads: list[Read], replaced: list[Module]) -> None:
        owner = traced.module
        # What pyops.convert has put there stays; where it put nothing, nothing comes.
        put = [m for m in replaced if "forward" in vars(m)]
        self._forwards: list[Read] = [(m, "forward", vars(m)["forward"]) for m in put]
        hidden: list[tuple[Module, str]] = []
        for m in replaced:
            names = traced.hidden.get(m, set()) | _forwards_of(m)
            hidden += [(m, n) for n in sorted(names - ({"forward"} if m in put else set()))]
        self._own: list[tuple[str, Any]] = []
        in_dicts = [*self._forwards]
        others: list[Read] = []
        for of, name, value in {(id(o), name): (o, name, value) for o, name, value in reads}.values():
            if of is owner:
                self._own.append((name, value))
            elif isinstance(of, Module) and name not in vars(of):
                hidden.append((of, name))  # of its class
            elif isinstance(of, (Module, ModuleType, Namespace)) and name in variables_of(of):
                in_dicts.append((of, name, value))
            else:
                others.append((of, name, value))
        self._own_names, self._own_values = [n for n, _ in self._own], [v for _, v in self._own]
        self._dicts, self._dict_names, self._dict_values = _columns(in_dicts, variables_of)
        self._owners, self._names, self._values = _columns(others)
        self._read = [*in_dicts, *others]
        self._simple = [read for read in self._read if isinstance(read[2], _SIMPLE)]
        # Attributes that a module itself must not have. (An own forward of the owner may call this one.)
        self._hidden = hidden
        self._hiding, self._hidden_names, _ = _columns([(m, n, None) for m, n in hidden], variables_of)
        self._hidden_of_owner = sorted(traced.hidden.get(owner, set()) - OWN_FORWARD)

        self._children = [
            (None if m is owner else m, [*m._modules], [*m._modules.values()]) for m in traced.visible
        ]
        self._hooks = tuple(chain.from_iterable(map(hooks_of, replaced)))
        self.replaced, self._kinds = replaced, [_kind_when_called(m) for m in replaced]

    def hold(self, owner: Module) -> bool:
        """Whether everything is as it was."""
        if torch.compiler.is_compiling():
            return self._hold_compiling(owner)
        try:
            return (
                self._read_the_same(owner)
                and self._changed(owner) is None
                and self._taken_over(owner) is None
            )
        except Exception:  # what is there now may refuse to be compared
            return False

    def _read_the_same(self, owner: Module) -> bool:
        return (
            (not self._own or list(map(getitem, repeat(vars(owner)), self._own_names)) == self._own_values)
            and list(map(getitem, self._dicts, self._dict_names)) == self._dict_values
            and list(map(getattr, self._owners, self._names)) == self._values
        )

    def _hold_compiling(self, owner: Module) -> bool:
        for name, value in self._own:
            if isinstance(value, _SIMPLE) and getattr(owner, name, _MISSING) != value:
                return False
        for module, name, value in self._simple:
            if getattr(module, name, _MISSING) != value:
                return False
        for module, kind in zip(self.replaced, self._kinds, strict=True):
            if type(module) is not kind:
                return False
        for module, _, forward in self._forwards:
            if module.__dict__.get("forward") is not forward:
                return False
        for name in self._hidden_of_owner:
            if name in owner.__dict__:
                return False
        for module, name in self._hidden:
            if name in module.__dict__:
                return False
        return self._changed(owner) is None

    def obstacle(self, owner: Module) -> str | None:
        """What keeps the plan from being used in any mode, or None."""
        if any(vars(module).get(name) != forward for module, name, forward in self._forwards):
            return _OWN_FORWARD
        return self._changed(owner) or self._taken_over(owner) or self._another_value(owner)

    def _another_value(self, owner: Module) -> str | None:
        for of, name, value in (*((owner, n, v) for n, v in self._own), *self._read):
            has_dict = isinstance(of, (Module, ModuleType, Namespace))
            now = variables_of(of).get(name, _MISSING) if has_dict else getattr(of, name, _MISSING)
            if name != "training" and not _equal(now, value):
                return f"{name}, which forward reads, has changed{CONVERT_AGAIN}"
        return None

    def _changed(self, owner: Module) -> str | None:
        if any(self._hooks) or _has_any_global_hook():
            return "a hook was added"
        for module, names, children in self._children:
            modules = (owner if module is None else module)._modules
            if [*modules] != names or [*modules.values()] != children:
                return f"a module was added, replaced or removed{CONVERT_AGAIN}"
        return None

    def _taken_over(self, owner: Module) -> str | None:
        if list(map(type, self.replaced)) != self._kinds:
            return f"the class of a module was changed{CONVERT_AGAIN}"
        if self._hidden_of_owner and any(map(contains, repeat(vars(owner)), self._hidden_of_owner)):
            return f"a method or constant of its class was replaced in the module{CONVERT_AGAIN}"
        if any(map(contains, self._hiding, self._hidden_names)):
            return _OWN_FORWARD
        return None


def _equal(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except Exception:  # what is there now may refuse to be compared
        return False


def _columns(reads: list[Read], of: Callable[[Any], Any] = lambda owner: owner) -> tuple[list[Any], ...]:
    return [of(o) for o, _, _ in reads], [n for _, n, _ in reads], [v for _, _, v in reads]


def _forwards_of(module: Module) -> set[str]:
    """The functions of a module's class that a fused call replaces."""
    return {name for name in OWN_FORWARD if hasattr(type(module), name)}


def _kind_when_called(module: Module) -> type[Module]:
    """The class of a module, for a lazy one the class that its first call gives it."""
    return getattr(type(module), "cls_to_become", None) or type(module)
