"""Which module of :mod:`torch.nn` becomes which of :mod:`pyops.nn`, and how: in place, by its class.

The object stays the same one. So do its parameters, buffers, hooks and name, every reference to it from
elsewhere, and what an optimizer holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Module
from torch.nn.utils import parametrize

from .. import nn


def _counterparts() -> dict[type[Module], type[Module]]:
    """Every class of torch.nn that pyops.nn has a subclass of, under the same name, and those that differ."""
    pairs = ((getattr(torch.nn, name, None), getattr(nn, name)) for name in nn.__all__)
    same = {theirs: ours for theirs, ours in pairs if theirs is not None and issubclass(ours, theirs)}
    # Of the same attributes, but no subclasses: torch's SyncBatchNorm refuses to run on a CPU, and
    # torch.compile to trace torch's recurrent layers.
    others = ("SyncBatchNorm", "RNN", "LSTM", "GRU")
    return {**same, **{getattr(torch.nn, name): getattr(nn, name) for name in others}}


TO_PYOPS = _counterparts()
TO_TORCH = {ours: theirs for theirs, ours in TO_PYOPS.items()}


@dataclass
class Conversion:
    """What was done to one module; kept in its ``__dict__``, so that it moves and is copied with it."""

    swapped: bool = False
    #: Reason why the forward of a module with children was not looked at for fusion.
    not_traced: str | None = None
    #: What was next to each other but not fused, and why.
    not_fused: list[str] = field(default_factory=list)
    #: The fused ways to run forward (``plan.py``). They belong to one object: a copy makes its own.
    plans: tuple[Any, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "plans": ()}


_KEY = "_pyops_conversion"


def conversion_of(module: Module) -> Conversion | None:
    """What was done to ``module``, None if nothing was."""
    return module.__dict__.get(_KEY)


def record(module: Module) -> Conversion:
    """What was done to ``module``, to be added to."""
    return module.__dict__.setdefault(_KEY, Conversion())


def forget(module: Module) -> None:
    module.__dict__.pop(_KEY, None)


def plain_type(module: Module) -> type[Module]:
    """The class of a module under the one that ``torch.nn.utils.parametrize`` may have derived from it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def change_class(module: Module, choose: Callable[[type[Module]], type[Module] | None]) -> bool:
    """Give ``module`` the class chosen for its :func:`plain_type`; False if that is None."""
    chosen = choose(plain_type(module))
    if chosen is None:
        return False
    if parametrize.is_parametrized(module):
        # torch made this class for this one module, with properties in place of its parameters.
        own = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
        chosen = type(type(module).__name__, (chosen,), own)
    module.__class__ = chosen
    return True


def has_own_forward(module: Module) -> bool:
    """Whether ``module`` itself, not its class, says what it computes: offloading and tiling do that."""
    return not OWN_FORWARD.isdisjoint(module.__dict__)


#: Attributes of a module's ``__dict__`` that take the place of what its class computes.
OWN_FORWARD = frozenset({"forward", "_conv_forward", "_norm_forward"})


def swap(module: Module) -> None:
    """Make a module of torch.nn the pyops.nn one, if there is one of this very class."""
    if isinstance(module, torch.jit.ScriptModule) or has_own_forward(module):
        return
    if change_class(module, TO_PYOPS.get):
        record(module).swapped = True


def unswap(module: Module) -> None:
    """The inverse; a module that was constructed as one of pyops.nn stays one."""
    conversion = conversion_of(module)
    if conversion is not None and conversion.swapped:
        change_class(module, TO_TORCH.get)


class _Unregistered:
    """First base of the classes made here: it keeps them from ``__init_subclass__`` hooks of their bases."""

    def __init_subclass__(cls, **options: Any) -> None:
        pass


def subclass(kind: type[Module], members: dict[str, Any]) -> type[Module]:
    """A subclass with the same name and docstring."""
    names = {key: getattr(kind, key) for key in ("__module__", "__qualname__", "__doc__")}
    bases = (kind,) if issubclass(kind, _Unregistered) else (_Unregistered, kind)
    meta: Any = type(kind)
    made: type[Module] = meta(kind.__name__, bases, {**names, **members})
    return made


_CONTAINERS = (
    Module,
    torch.nn.Sequential,
    torch.nn.ModuleList,
    torch.nn.ModuleDict,
    torch.nn.ParameterList,
    torch.nn.ParameterDict,
)


def of_a_library(kind: type) -> bool:
    """Whether a class is torch's or pyops's own; those of :mod:`pyops.models` are models like any other."""
    package, _, rest = kind.__module__.partition(".")
    return package == "torch" or (package == "pyops" and rest.split(".")[0] != "models")


def is_leaf(module: Module) -> bool:
    """Whether a module is, or extends, one that torch or pyops wrote the forward of (and no container)."""
    return any(
        base not in _CONTAINERS and of_a_library(base)
        for base in plain_type(module).__mro__
        if not issubclass(base, _Unregistered)
    )


def why_left(module: Module) -> str | None:
    """Why a module that computes something is none of pyops.nn; None if it is, or only has children."""
    kind = plain_type(module)
    if kind in TO_TORCH:
        return None
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit.script"
    if isinstance(module, torch.fx.GraphModule):
        return "a graph that torch.fx made: convert the model before it is traced"
    if kind in TO_PYOPS and has_own_forward(module):
        return "it has a forward of its own"
    if kind in TO_PYOPS:
        return f"not converted: pyops.convert makes it pyops.nn.{kind.__name__}"
    for base in kind.__mro__[1:]:
        if base in TO_PYOPS or base in TO_TORCH:
            owner = "torch.nn" if base in TO_PYOPS else "pyops.nn"
            return f"a subclass of {owner}.{base.__name__}, which may compute something else"
    return "pyops has no kernel for it" if is_leaf(module) else None
