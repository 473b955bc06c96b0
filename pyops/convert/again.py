"""A plan that no longer describes its module is made anew, a few times.

What forward reads may change once (a slope that is set, a layer that is replaced), and is fused as before
after that. What changes at every call would be traced at every call: after a few times the module runs its
own code instead.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .guards import CONVERT_AGAIN
from .plan import Plan, make_plans
from .swap import Conversion
from .trace import Untraceable

#: How often plans are made anew, and how often it is looked whether they should be.
MOST_TRIES, _MOST_LOOKS = 3, 32

_one_at_a_time = Lock()
_PLAIN = (Tensor, Parameter)


def plan_again(module: Any, inputs: tuple[Any, ...]) -> Plan | None:
    """A plan for this call of ``module``, none of whose plans holds, or None.

    The plans before stay, behind the new ones: what has changed may change back.
    """
    conversion: Conversion = module._pyops_conversion
    if conversion.tries == MOST_TRIES or conversion.looks == _MOST_LOOKS or not _is_plain(inputs):
        return None
    if not any(plan.takes(inputs) for plan in conversion.plans):
        return None
    if not _one_at_a_time.acquire(blocking=False):  # while a thread traces, others see classes of the tracer
        return None
    before = conversion.plans
    try:
        conversion.looks += 1
        why = _change(module, conversion)
        if why is None:
            return None
        conversion.tries += 1
        make_plans(module)
        if conversion.plans:
            conversion.changes = [*conversion.changes, why]
        conversion.plans = (*conversion.plans, *before)
    except Untraceable:  # as it is now
        return None
    finally:
        _one_at_a_time.release()
    return next((plan for plan in conversion.plans if plan.holds(module, inputs)), None)


def _change(module: Any, conversion: Conversion) -> str | None:
    """What has changed for good; None if a plan is only not for this mode, or a hook is in its way."""
    obstacles = [plan.obstacle(module) for plan in conversion.plans]
    if None in obstacles:
        return None
    return next((text for o in obstacles if o and (text := o.removesuffix(CONVERT_AGAIN)) != o), None)


def _is_plain(inputs: tuple[Any, ...]) -> bool:
    """Whether this is a call like any other, of tensors, that nothing is to be seen of."""
    return not (
        torch.compiler.is_compiling()
        or any(type(input) not in _PLAIN for input in inputs)
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
    )
