"""The forward of a module that has plans: it runs them, and makes new ones when something has changed."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch.nn import Module

from .again import plan_again
from .forwards import Method, attach, detach, gone
from .plan import make_plans
from .swap import record
from .trace import Untraceable


def install(module: Module) -> None:
    """Let ``module``, whose plans are recorded, run them."""
    module.__dict__["forward"] = PlannedForward(module)


def uninstall(module: Module) -> None:
    """The inverse."""
    if isinstance(module.__dict__.get("forward"), PlannedForward):
        detach(module)


class PlannedForward(Method):
    """A forward that runs the module's first plan that holds, or else that of the module's class.

    Where something has changed for good, it makes plans anew, a few times (``again.py``).
    """

    def __init__(self, module: Module) -> None:
        super().__init__(module, type(module).forward)
        attach(module, {"extra_repr": _extra_repr})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self.of()
        if module is None:
            gone()
        if not kwargs:
            for plan in module._pyops_conversion.plans:
                if plan.holds(module, args):
                    return plan.function(plan, module, *args)
            again = plan_again(module, args)
            if again is not None:
                return again.function(again, module, *args)
        return type(module).forward(module, *args, **kwargs)

    def __reduce__(self) -> Any:
        return _of_copy, (self.of(),)


def _of_copy(module: Module) -> PlannedForward:
    """The forward of a copy, or of a module read from a file, whose state is still to come."""
    if "_pyops_conversion" not in module.__dict__:
        module.__dict__["__setstate__"] = Method(module, _set_state)
    return PlannedForward(module)


def _set_state(module: Module, state: Any) -> None:
    """A plan belongs to one object and is not stored."""
    del module.__dict__["__setstate__"]
    module.__setstate__(state)
    try:
        make_plans(module)
    except Untraceable as error:
        record(module).not_traced = str(error)


def _extra_repr(module: Module) -> str:
    """What the class says, and what is fused now."""
    groups = (plan.groups for plan in record(module).plans if plan.obstacle(module) is None)
    fused = ", ".join(dict.fromkeys(chain.from_iterable(groups)))
    return "\n".join(filter(None, (type(module).extra_repr(module), fused and f"fused: {fused}")))
