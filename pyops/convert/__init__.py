"""Any model of :mod:`torch.nn` modules, computed as by those of pyops and what is adjacent fused.

Read ``forwards.py`` and ``swap.py`` (modules), ``trace.py``, ``surroundings.py`` and ``frames.py`` (what a
forward does and reads), ``ops.py`` and ``patterns.py`` (what of it is fused), ``steps.py`` (into what),
``links.py`` and ``chain.py`` (steps and layers as one node of autograd), ``plan.py`` and ``planned.py`` (how
it is run), ``guards.py`` (as long as it is right), ``again.py`` (and then), ``sample.py``, ``parts.py`` and
``measure.py`` (whether it pays), in this order.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch.nn

from .measure import choose
from .patterns import has_heads
from .plan import make_plans
from .planned import install, uninstall
from .report import Entry, Report, conversion_report
from .swap import conversion_of, forget, has_own_forward, is_leaf, record, swap, unswap
from .trace import Untraceable, Untraced

__all__ = ["Entry", "Report", "conversion_report", "convert", "revert"]

M = TypeVar("M", bound=torch.nn.Module)


def convert(model: M, fuse: bool = True, *, example_inputs: Any = None, seconds: float = 20.0) -> M:
    """Let the modules of ``model`` compute as those of :mod:`pyops.nn`, in place, and fuse what is adjacent.

    Modules, parameters, buffers, hooks and names stay the objects that they were, so that optimizers,
    ``state_dict`` and other references to them keep working, and of the same class, for what asks for it: a
    module of class ``torch.nn.X`` gets the ``forward`` of ``pyops.nn.X``. (A ``SyncBatchNorm`` gets the class
    as well.) Subclasses, and modules that pyops does not have, stay as they are. ``copy.copy`` of a module
    has the forward of its class.

    With ``fuse``, the forward of Sequentials and of other modules with children is traced by
    :mod:`torch.fx`, and runs of ops in it are computed by one kernel: convolution, batch normalisation
    (part of the weights in evaluation mode while no gradient is wanted), addition, activation; convolution,
    activation, max pooling; linear, activation, dropout; batch normalisation, addition, activation. On the
    CPU, what of this and of single layers follows each other is one node of autograd. A forward
    that cannot be traced faithfully runs as it is written, on the converted modules. Fusion needs no care
    afterwards: forward runs as it is written with a hook on one of its modules. When something has changed
    that forward reads (an attribute, a module in the place of another, a ``forward`` put on one, a global
    variable, a helper function, an attribute of a class, the state of torch.distributed), it is looked at and
    fused anew, up to three times for each module; later it runs as it is written. A module that has a
    ``forward`` of its own stays as it is. Copies and files keep fusion.

    With ``example_inputs``, every part runs on what it gets of them, as converted and as it was, and so does
    the whole model: a training step without the optimizer in training mode, else an evaluation without
    gradients. What is faster as it was stays torch's, and the report says so ("kept torch", with both times).
    This takes up to about ``seconds``, with a bar in a terminal; nothing else should run on the machine
    meanwhile. Buffers, gradients and random numbers stay what they were; hooks of the model run. Without
    ``example_inputs`` everything is converted, and what an earlier measurement kept stays so.

    Call it again after changing the model: it converts new modules, and fuses anew what runs as it is written
    since. :func:`revert` undoes it, :func:`conversion_report` tells what was done, and what has changed.

    Args:
        model: any module.
        fuse: whether what is adjacent is fused.
        example_inputs: a tensor, a tuple or list of ``model``'s arguments, or a mapping of them by name.
        seconds: how long to measure.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no ``torch.nn.Module``.
        ValueError: ``example_inputs`` are given, and a layer of ``model`` is lazy.
    """
    _check("convert", model)
    for module in model.modules():
        conversion = conversion_of(module)
        if example_inputs is not None and conversion is not None:
            conversion.kept = None
        swap(module)
    _plan(model, fuse)
    if example_inputs is not None:
        choose(model, example_inputs, seconds, lambda: _plan(model, fuse))
    return model


def _plan(model: torch.nn.Module, fuse: bool) -> None:
    """Make the plans of ``model`` and of the modules in it anew."""
    modules = list(model.modules())
    for module in modules:
        _clear_plans(module)
    if fuse:
        untraced: Untraced = set()
        for module in reversed(modules):  # children first
            _fuse(module, untraced)


def revert(model: M) -> M:
    """Undo :func:`convert`, in place: every module has the forward of its class again, as it is written.

    Modules that were constructed as those of pyops.nn stay so.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no ``torch.nn.Module``.
    """
    _check("revert", model)
    for module in model.modules():
        _clear_plans(module)
        unswap(module)
        forget(module)
    return model


def _check(function: str, model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")


def _clear_plans(module: torch.nn.Module) -> None:
    uninstall(module)
    conversion = conversion_of(module)
    if conversion is not None:
        conversion.plans, conversion.not_traced, conversion.not_fused = (), None, []
        conversion.changes, conversion.tries, conversion.looks = [], 0, 0


def _fuse(module: torch.nn.Module, untraced: Untraced) -> None:
    if is_leaf(module) or type(module).forward is torch.nn.Module.forward or not has_heads(module):
        return
    if has_own_forward(module):
        record(module).not_traced = "it has a forward of its own"
        return
    try:
        make_plans(module, untraced)
    except Untraceable as error:
        record(module).not_traced = str(error)
        return
    if record(module).plans:
        install(module)
