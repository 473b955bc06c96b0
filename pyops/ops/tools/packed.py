"""Weights in the order in which a kernel wants them, packed once and kept while they do not change.

For inference: on one image, packing the weights takes as long as multiplying by them. What is kept belongs to
the parameter, not to a module: it is never copied, pickled or saved, and it goes when the parameter goes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["constant", "forget", "is_constant", "may_keep", "packed"]


class _Kept(NamedTuple):
    owner: weakref.ref[Tensor]
    state: Hashable  # of the weight and of what it was packed for
    packed: Tensor | None  # None until the second call with the same state; empty if nothing is to be packed
    alias: Tensor | None  # keeps the weight's memory: no other can have its address


_kept: dict[int, _Kept] = {}


def may_keep(weight: Tensor) -> bool:
    """Whether a call is one of inference with a parameter, whose changes can be seen."""
    return (
        type(weight) is Parameter
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not weight.is_inference()
    )


def constant(weight: Tensor) -> Parameter:
    """``weight`` as a parameter that nobody else has, and that its owner does not change."""
    parameter = Parameter(weight, requires_grad=False)
    parameter.__dict__[_CONSTANT] = True
    return parameter


_CONSTANT = "_pyops_constant"


def is_constant(weight: Tensor) -> bool:
    """Whether a weight is one of :func:`constant`: no digest has to tell whether it is still the same."""
    return _CONSTANT in weight.__dict__


def packed(weight: Tensor, key: Hashable, pack: Callable[[], Tensor]) -> Tensor | None:
    """What ``pack()`` has made of ``weight`` for ``key``, or None: for now, or where that is empty.

    It packs at the second call in a row with the same key and an unchanged weight, and keeps one for each
    weight: what is called with ever new shapes packs nothing. Changes are seen by the weight's version and
    address. What is written through ``weight.data``, which has a version of its own, the kernel notices by a
    digest of all weights (csrc/cpu/conv2d/packed_weights.h).
    """
    number, state = id(weight), (weight._version, weight.data_ptr(), key)
    kept = _kept.get(number)
    if kept is None or kept.owner() is not weight or kept.state != state:
        owner = weakref.ref(weight, lambda dead, number=number: _drop(number, dead))  # type: ignore[misc]
        _kept[number] = _Kept(owner, state, None, None)
        return None
    if kept.packed is None:
        kept = kept._replace(packed=pack(), alias=weight.detach())
        _kept[number] = kept
    return kept.packed if kept.packed is not None and kept.packed.numel() > 0 else None


def forget(weight: Tensor | None) -> None:
    """Give back what is kept for a weight, before it changes or because it turned out to be of no use."""
    if weight is not None:
        _kept.pop(id(weight), None)


def _drop(number: int, dead: weakref.ref[Tensor]) -> None:
    kept = _kept.get(number)
    if kept is not None and kept.owner is dead:
        del _kept[number]
