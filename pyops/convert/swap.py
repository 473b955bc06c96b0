"""Which module of :mod:`torch.nn` computes as which of :mod:`pyops.nn`, and how: in place, by its forward.

The object stays the same one. So do its class, parameters, buffers, hooks and name, every reference to it
from elsewhere, and what an optimizer holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch.nn import Module
from torch.nn.utils import parametrize

from .. import nn
from .forwards import Forward, Method, detach, forward_for


def _counterparts() -> dict[type[Module], type[Module]]:
    """Every class of torch.nn that pyops.nn has one for, under the same name."""
    pairs = ((getattr(torch.nn, name, None), getattr(nn, name)) for name in nn.__all__)
    return {theirs: ours for theirs, ours in pairs if theirs is not None}


TO_PYOPS = _counterparts()
TO_TORCH = {ours: theirs for theirs, ours in TO_PYOPS.items()}
#: What these compute; a class may get another forward later, which is then not ours to replace.
_FORWARDS = {kind: kind.forward for kind in (*TO_PYOPS, *TO_TORCH)}
#: Of which a module gets the class, too: DistributedDataParallel refuses torch's outside of GPUs.
_OF_OWN_CLASS = (torch.nn.SyncBatchNorm,)


@dataclass(frozen=True)
class Cost:
    """What a layer, or a fused step that begins with it, takes in one step of the model."""

    #: Multiplications and additions, as ``torch.utils.flop_counter`` counts.
    flops: int
    #: Read and written at least, by the ops as they run now.
    bytes: int
    #: Seconds as it runs now, and as it was before the conversion.
    now: float
    before: float

    def __add__(self, other: Cost) -> Cost:
        mine, theirs = astuple(self), astuple(other)
        return Cost(*(a + b for a, b in zip(mine, theirs, strict=True)))


@dataclass
class Conversion:
    """What was done to one module; kept in its ``__dict__``, so that it moves and is copied with it."""

    #: Whether it computes as one of pyops.nn.
    swapped: bool = False
    #: Times that decided that it stays torch's (``measure.py``).
    kept: str | None = None
    #: What it takes, where that was measured.
    cost: Cost | None = None
    #: Reason why the forward of a module with children was not looked at for fusion.
    not_traced: str | None = None
    #: What was next to each other but not fused, and why.
    not_fused: list[str] = field(default_factory=list)
    #: The fused ways to run forward (``plan.py``). They belong to one object: a copy makes its own.
    plans: tuple[Any, ...] = ()
    #: What had changed when plans were made anew, how often that was tried, and looked for (``again.py``).
    changes: list[str] = field(default_factory=list)
    tries: int = 0
    looks: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "plans": (), "changes": [], "tries": 0, "looks": 0}


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
    """Whether ``module`` itself, not its class, says what it computes: offloading and tiling do that.

    What :func:`pyops.convert` puts there does not count.
    """
    own = OWN_FORWARD.intersection(module.__dict__)
    return bool(own) and any(not isinstance(module.__dict__[name], Method) for name in own)


#: Attributes of a module's ``__dict__`` that take the place of what its class computes.
OWN_FORWARD = frozenset({"forward", "_conv_forward", "_norm_forward"})


def swap(module: Module) -> None:
    """Make a module of torch.nn compute as the pyops.nn one, if there is one for this very class."""
    if isinstance(module, torch.jit.ScriptModule) or has_own_forward(module) or is_converted(module):
        return
    kind, conversion = plain_type(module), conversion_of(module)
    if kind not in TO_PYOPS or (conversion is not None and conversion.kept is not None):
        return
    if kind.forward is not _FORWARDS[kind]:
        return
    if kind in _OF_OWN_CLASS:
        change_class(module, TO_PYOPS.get)
    else:
        module.__dict__["forward"] = forward_for(module, kind)
    record(module).swapped = True


def unswap(module: Module) -> None:
    """The inverse; a module that was constructed as one of pyops.nn stays one."""
    detach(module)
    conversion = conversion_of(module)
    if conversion is not None and conversion.swapped:
        change_class(module, TO_TORCH.get)
        conversion.swapped = False


def is_converted(module: Module) -> bool:
    """Whether a module of torch's class computes as the one of pyops.nn."""
    return isinstance(module.__dict__.get("forward"), Forward)


def computing_type(module: Module) -> type[Module]:
    """The class whose forward ``module`` runs: for a converted one that of pyops.nn."""
    kind = plain_type(module)
    if kind in _FORWARDS and kind.forward is not _FORWARDS[kind]:
        return Module
    return TO_PYOPS.get(kind, kind) if is_converted(module) else kind


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
    if computing_type(module) in TO_TORCH:
        return None
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit.script"
    if isinstance(module, torch.fx.GraphModule):
        return "a graph that torch.fx made: convert the model before it is traced"
    conversion = conversion_of(module)
    if conversion is not None and conversion.kept is not None:
        return None
    if kind in TO_PYOPS and has_own_forward(module):
        return "it has a forward of its own"
    if kind in _FORWARDS and kind.forward is not _FORWARDS[kind]:
        return "its class was given another forward"
    if kind in TO_PYOPS:
        return f"not converted: pyops.convert makes it compute as pyops.nn.{kind.__name__}"
    for base in kind.__mro__[1:]:
        if base in TO_PYOPS or base in TO_TORCH:
            owner = "torch.nn" if base in TO_PYOPS else "pyops.nn"
            return f"a subclass of {owner}.{base.__name__}, which may compute something else"
    return "pyops has no kernel for it" if is_leaf(module) else None
